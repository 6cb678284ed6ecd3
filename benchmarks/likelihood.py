"""Evaluations that a log-likelihood costs on worlds whose density is known, beside the recipe of score_sde.

    python -m benchmarks.likelihood [--points 16] [--seed 0]

The recipe (Song et al. 2021, App. D.2; `likelihood.py` of score_sde): scipy's RK45 with rtol = atol = 1e-5 in the time of the VP SDE, from 1e-5 to
1, the trace estimated by one Rademacher probe, the end taken for N(0, I).  Its estimate is averaged over as many runs as bring the
error, root mean square over the points and in nats per dimension, to 1e-3: an evaluation is one call of the network, with one derivative
along the probe.  Ours: `likelihood.log_prob` by diffrax's Dopri8 in equal steps of the angle, control from the moments of 20,000 draws, on
a schedule that reaches log-SNR -30; as many steps as bring its error to 1e-6.  An evaluation is one call, with d derivatives, and the second
column counts each derivative as another evaluation, on both sides.  Both see float64 and the same exact denoiser.
"""

import argparse
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.solvers.worlds import WORLDS
from diffeq_gen import adapters, clocks, equations, exact, likelihood, samplers, schedules, traces
from diffeq_gen.types import Denoiser, Point, Schedule

NAMES = ("overlapping 2-D", "spiral 2-D", "separated 2-D", "skewed 8-D", "tangled 12-D", "sheets 32-D")
THEIRS, OURS, RATIO = 1e-3, 1e-6, 0.5


def mixture(name: str) -> exact.Mixture:
    """The world of the solvers' benchmark, as a mixture with covariances."""
    world = WORLDS[name]()
    k, d = world.means.shape
    bases = np.broadcast_to(np.eye(d), (k, d, d)) if world.bases.shape[-1] == 1 else world.bases
    covs = np.einsum("kij,kj,klj->kil", bases, world.stds**2, bases)
    return exact.Mixture(jnp.asarray(world.weights), jnp.asarray(world.means), jnp.asarray(covs))


def recipe(denoise: Denoiser, schedule: Schedule, x0: np.ndarray, probe: np.ndarray) -> tuple[float, int]:
    """(log p(x0) in nats, evaluations), of score_sde."""
    flow, d, calls = jax.jit(equations.probability_flow(denoise, schedule)), x0.size, 0

    @jax.jit
    def rate(t: float, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return traces.estimated(lambda z: flow(z, t), z, probe[None])

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        drift, trace = rate(jnp.asarray(t), jnp.asarray(state[:-1]))
        return np.append(drift, trace)

    found = solve_ivp(slope, (1e-5, 1.0), np.append(x0, 0.0), method="RK45", rtol=1e-5, atol=1e-5)
    z, gained = found.y[:-1, -1], found.y[-1, -1]
    return float(-np.sum(z**2) / 2 - d / 2 * np.log(2 * np.pi) + gained), calls


def repeated(run: Callable[[int], np.ndarray], known: np.ndarray, d: int, most: int) -> tuple[int, float]:
    """(runs whose mean is within THEIRS of what is known, the error of one); told by the variance between runs, where that is all."""
    rows = np.stack([run(i) for i in range(most)])
    one = np.sqrt(np.mean((rows - known) ** 2)) / d
    bias = np.sqrt(np.maximum(np.mean((rows.mean(0) - known) ** 2) - np.mean(rows.var(0, ddof=1)) / most, 0)) / d
    spread = np.sqrt(np.mean(rows.var(0, ddof=1))) / d
    if bias >= THEIRS:
        return -1, one
    return max(1, int(np.ceil(spread**2 / (THEIRS**2 - bias**2)))), one


def main() -> None:
    """A row for each world."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument(
        "--runs", type=int, default=8, help="of the recipe, with a probe each, by which its spread is told"
    )
    parser.add_argument("--worlds", nargs="+", default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'':18} {'score_sde to 1e-3':>34}   {'ours to 1e-6':>26}   target {RATIO}")
    print(f"{'world':18} {'one run':>9} {'its error':>11} {'runs':>6} {'calls':>6}   {'calls':>6} {'error':>9} {'control':>8}"
          f"   calls over calls   with derivatives")  # fmt: skip
    for name in options.worlds:
        world = mixture(name)
        d, keys = world.means.shape[1], jax.random.split(jax.random.key(options.seed), 3)
        x0 = np.asarray(exact.draw(keys[0], world, options.points))
        vp, wide = schedules.VP(), schedules.Cosine(log_snr_min=-30.0, log_snr_max=12.0)
        clean = float(clocks.log_snr(vp, 1e-5))
        one = jnp.ones(())
        at_noise = lambda log_snr: jax.vmap(
            lambda x: exact.log_prob(world, x, Point(one, one, jnp.exp(-log_snr / 2), one, one))
        )(x0)  # noqa: E731
        probes = np.asarray(jax.random.rademacher(keys[1], (options.runs, options.points, d), jnp.float64))
        spent = []

        def run(i: int) -> np.ndarray:
            rows = [recipe(exact.denoiser(world, vp), vp, x, probe) for x, probe in zip(x0, probes[i], strict=True)]  # noqa: B023
            spent.append(np.mean([calls for _, calls in rows]))  # noqa: B023
            return np.array([value for value, _ in rows])

        runs, error = repeated(run, np.asarray(at_noise(clean)), d, options.runs)
        control = samplers.control_of(exact.draw(keys[2], world, 20000), mixture=False, floor=1e-3)
        ends, known = {"log_snr_min": -30.0, "log_snr_max": 12.0}, np.asarray(at_noise(12.0))
        for steps in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128):
            solve = adapters.solve(diffrax.Dopri8(), steps=steps)
            read = lambda x: likelihood.log_prob(
                exact.denoiser(world, wide), wide, x, solve=solve, control=control, **ends
            )  # noqa: B023, E731
            ours = np.sqrt(np.mean((np.asarray(jax.jit(jax.vmap(read))(x0)) - known) ** 2)) / d
            if ours <= OURS:
                break
        theirs, calls = np.mean(spent) * runs, 13 * steps
        print(f"{name:18} {np.mean(spent):9.0f} {error:11.1e} {runs:6d} {theirs:6.0f}   {calls:6d} {ours:9.1e} {'':8}"
              f"   {calls / theirs:16.3f}   {calls * (1 + d) / (2 * theirs):16.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
