"""Evaluations that a log-likelihood costs on worlds whose density is known, beside the recipe of score_sde.

    python -m benchmarks.likelihood [--points 16] [--runs 8] [--worlds "skewed 8-D" ...] [--seed 0]

The recipe (Song et al. 2021, App. D.2; `likelihood.py` of score_sde): scipy's RK45 with rtol = atol = 1e-5 in the time of the VP SDE,
from 1e-5 to 1, the trace estimated by one Rademacher probe, the end taken for N(0, I).  One run's error, root mean square over the
points in nats per dimension, is mostly the probe's, and as many runs are averaged as bring that to 1e-3.  The same with the exact
trace, which score_sde does not have, is told beside it.  Ours: `likelihood.log_prob` by diffrax's Dopri8 in equal steps of the angle,
with the exact trace, a control from the moments of 20,000 draws and a schedule that reaches log-SNR -30; as many steps as bring
the error to 1e-6.  An evaluation is one call of the denoiser; the last column counts each directional derivative as one more.
float64 on both sides, the same exact denoiser.
"""

import argparse
import functools
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


class Recipe:
    """score_sde's, on one world: log p(x0) in nats and the evaluations it cost, by a probe or by the exact trace."""

    def __init__(self, denoise: Denoiser, schedule: Schedule) -> None:
        flow = equations.probability_flow(denoise, schedule)
        self.probed = jax.jit(lambda t, z, probe: traces.estimated(lambda z: flow(z, t), z, probe[None]))
        self.exact = jax.jit(lambda t, z, probe: traces.divergence(lambda z: flow(z, t), z))

    def __call__(self, rate: Callable, x0: np.ndarray, probe: np.ndarray) -> tuple[float, int]:
        """By `probed` or `exact`."""
        found = solve_ivp(
            lambda t, state: np.append(*rate(t, state[:-1], probe)), (1e-5, 1.0), np.append(x0, 0.0),
            method="RK45", rtol=1e-5, atol=1e-5,
        )  # fmt: skip
        z, gained = found.y[:-1, -1], found.y[-1, -1]
        return float(-np.sum(z**2) / 2 - x0.size / 2 * np.log(2 * np.pi) + gained), found.nfev


def blurred(world: exact.Mixture, x0: np.ndarray, log_snr: float) -> np.ndarray:
    """log p of x0 under the world with noise of this level."""
    one = jnp.ones(())
    p = Point(one, one, jnp.exp(-jnp.asarray(log_snr) / 2), one, one)
    return np.asarray(jax.vmap(lambda x: exact.log_prob(world, x, p))(x0))


def rms(found: np.ndarray, known: np.ndarray, d: int) -> float:
    """In nats per dimension."""
    return float(np.sqrt(np.mean((found - known) ** 2)) / d)


def ours(world: exact.Mixture, x0: np.ndarray, draws: jax.Array) -> tuple[int, float]:
    """(evaluations, error) of the fewest steps that are good enough, or of the most."""
    schedule, known = schedules.Cosine(log_snr_min=-30.0, log_snr_max=12.0), blurred(world, x0, 12.0)
    control, denoise = samplers.control_of(draws, mixture=False, floor=1e-3), exact.denoiser(world, schedule)
    for steps in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96):
        settings = {"solve": adapters.solve(diffrax.Dopri8(), steps=steps), "control": control, "log_snr_min": -30.0}
        read = jax.jit(jax.vmap(functools.partial(likelihood.log_prob, denoise, schedule, **settings)))
        error = rms(np.asarray(read(x0)), known, x0.shape[1])
        if error <= OURS:
            break
    return 13 * steps, error


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
    print(
        f"{'':16} {'score_sde':>30}  {'with the exact trace':>20}  {'ours':>14}   ours over score_sde, target {RATIO}"
    )
    print(f"{'world':16} {'one run':>8} {'error':>8} {'runs':>12}  {'calls':>10} {'error':>9}  {'calls':>5} {'error':>8}"
          f"   calls, and with derivatives")  # fmt: skip
    for name in options.worlds:
        world, keys = mixture(name), jax.random.split(jax.random.key(options.seed), 3)
        x0, d = np.asarray(exact.draw(keys[0], world, options.points)), world.means.shape[1]
        schedule = schedules.VP()
        recipe, known = (
            Recipe(exact.denoiser(world, schedule), schedule),
            blurred(world, x0, float(clocks.log_snr(schedule, 1e-5))),
        )
        probes = np.asarray(jax.random.rademacher(keys[1], (options.runs, options.points, d), jnp.float64))
        probed = np.array(
            [[recipe(recipe.probed, x, probe) for x, probe in zip(x0, row, strict=True)] for row in probes]
        )
        told = np.array([recipe(recipe.exact, x, probe) for x, probe in zip(x0, probes[0], strict=True)])
        spread, bias = np.sqrt(probed[..., 0].var(0, ddof=1).mean()) / d, rms(told[:, 0], known, d)
        runs = int(np.ceil(max(1.0, spread**2 / (THEIRS**2 - bias**2)))) if bias < THEIRS else None
        calls, error = ours(world, x0, exact.draw(keys[2], world, 20000))
        once = probed[..., 1].mean()
        ratios = (
            "never there" if runs is None else f"{calls / (once * runs):.2g}, {calls * (1 + d) / (2 * once * runs):.2g}"
        )
        print(f"{name:16} {once:8.0f} {rms(probed[..., 0], known, d):8.1e} {runs or '-':>12}  {told[:, 1].mean():10.0f} {bias:9.1e}"
              f"  {calls:5d} {error:8.1e}   {ratios}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
