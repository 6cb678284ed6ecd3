"""Our solvers against those that people run today, to the last digit: one mixture, the same grids, the same exact denoiser.

    python -m benchmarks.solvers.agreement --peers PEERS_PYTHON [--steps 20]
    python -m benchmarks.solvers.agreement --errors

PEERS_PYTHON is the Python of an environment with `benchmarks/solvers/requirements.txt`; the peers run there, in a process of
their own (`peers.py`).  A line is a peer and ours, and the largest difference of z/alpha at the end over the largest entry, over four
grids (Karras et al.'s, even in log-SNR, even in sigma/alpha, and uneven by chance) or those it names; "zero" is the first with
sigma = 0 at its end.  "plain" is the library as it is, "double" the same made to compute in float64; "mended" reads one place
of its source otherwise.  Words in brackets are ours built here from parts, or with one place read otherwise.  Every difference
above 1e-12 must have its explanation here: the exit status is 1 where one has none.

--errors needs no peers: how far from the flow ours and theirs end where they are two methods.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.solvers.methods import Build, fast, last_stage_alone, shipped_third
from diffeq_gen import exact, samplers
from diffeq_gen.types import Denoiser, Sampler, Schedule, Time, pytree

BOUND, TOP = 1e-12, 80.0


@pytree
class Ratio:
    """sigma/alpha = 80 t, alpha^2 + sigma^2 = 1: a grid of ratios is a grid of times."""

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        ratio = TOP * jnp.asarray(t)
        alpha = 1 / jnp.hypot(1.0, ratio)
        return alpha, ratio * alpha

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The time at which sigma/alpha = e^{-log_snr/2}."""
        return jnp.exp(-log_snr / 2) / TOP


class Row(NamedTuple):
    """A peer, ours in words, what runs ours, the grids on which they should agree, and the mode that must agree with it."""

    peer: str
    words: str
    build: Build
    grids: str = "karras log even uneven"
    mode: str = "double"
    why: str = ""


def ours(name: str, **options: object) -> tuple[str, Build]:
    """A sampler of the package, and its call in words."""
    words = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({words})", lambda denoise, schedule: getattr(samplers, name)(denoise, schedule, **options)


def alone(rule: str, two_point: str = "exact") -> tuple[str, Build]:
    """Built here from the package's parts, for the package has no such solver."""
    build = lambda denoise, schedule: last_stage_alone(denoise, schedule, rule=rule, two_point=two_point)  # noqa: E731
    return f"[last stage alone, {rule}, {two_point}]", build


def shipped(rule: str, two_point: str) -> tuple[str, Build]:
    """Their third order, built here as they have it."""
    build = lambda denoise, schedule: shipped_third(denoise, schedule, rule=rule, two_point=two_point)  # noqa: E731
    return f"[half of a second difference, {rule}, {two_point}]", build


def rows() -> list[Row]:
    """Every comparison."""
    found = []
    third = "their second difference is half of the second derivative"
    single = "theirs uses two of the three values"
    for algorithm, rule, short in (("dpmsolver++", "data", "x0"), ("dpmsolver", "noise", "eps")):
        name = f"diffusers DPMSolverMultistepScheduler {algorithm}"
        found.append(Row(f"{name} midpoint 1", *ours("ddim")))
        for solver, theirs, point in (("midpoint", "dpm_solver", "midpoint"), ("heun", "taylor", "exact")):
            two = ours("multistep", order=2, rule=rule, two_point=point)
            three = ours("multistep", order=3, rule=rule, two_point=point)
            for peer in (f"{name} {solver}", f"official DPM_Solver {short} multistep {theirs}"):
                found += [
                    Row(f"{peer} 2", *two),
                    Row(f"{peer} 3", *three, why=third),
                    Row(f"{peer} 3", *shipped(rule, point)),
                    Row(f"{peer} 3", *three, mode="mended"),
                ]
            one = f"diffusers DPMSolverSinglestepScheduler {algorithm} {solver}"
            for peer in (one, f"official DPM_Solver {short} singlestep_fixed {theirs}"):
                found.append(Row(f"{peer} 2", *ours("singlestep", order=2, rule=rule, two_point=point)))
                if solver == "heun":
                    found.append(Row(f"{peer} 3", *ours("singlestep", order=3, rule=rule)))
                else:
                    found.append(Row(f"{peer} 3", *ours("singlestep", order=3, rule=rule), why=single))
                    found.append(Row(f"{peer} 3", *alone(rule, "midpoint" if "diffusers" in peer else "exact")))
    for variant, point in (("bh1", "trapezoid"), ("bh2", "midpoint")):
        for order in (1, 2, 3):
            here = ours("unipc", order=order, variant=variant)
            noise = ours("multistep", order=order, rule="noise", corrector=True, two_point=point)
            found.append(Row(f"diffusers UniPC {variant} x0 {order}", *here))
            found.append(Row(f"diffusers UniPC {variant} eps {order}", *noise))
            found.append(Row(f"official UniPC {variant} x0 {order}", *here))
    varying = "their corrector gives the value at the end to one derivative"
    powers = "rounding: powers of log(alpha/sigma) itself, which cancel"
    digits = "rounding: differences of antiderivatives"
    for order in (1, 2, 3):
        exactly = ours("multistep", order=order, corrector=True)
        if order > 1:
            found.append(Row(f"official UniPC vary_coeff x0 {order}", *exactly, why=varying))
        found.append(Row(f"official UniPC vary_coeff x0 {order}", *exactly, mode="mended" if order > 1 else "double"))
        found.append(
            Row(f"diffusers SASolver data_prediction {order}", *ours("unipc", order=order, variant="bh1"), why=powers)
        )
        noise = ours("multistep", order=order, rule="noise", corrector=True)
        found.append(Row(f"diffusers SASolver noise_prediction {order}", *noise, why=powers))
        deis = ours("multistep", order=order, rule="noise")
        found.append(Row(f"diffusers DEIS logrho {order}", *deis, why=digits if order == 3 else ""))
        edm = ours("multistep", order=order, two_point="midpoint")
        found.append(Row(f"diffusers EDMDPMSolver midpoint {order}", *edm, why=third if order == 3 else ""))
    found.append(Row("diffusers EDMDPMSolver midpoint 3", *edm, mode="mended"))
    found.append(Row("diffusers EDMDPMSolver midpoint 3", *shipped("data", "midpoint")))
    found += [Row(peer, *ours("ddim")) for peer in ("diffusers DDIM", "diffusers Euler", "k-diffusion euler")]
    found += [Row(peer, *ours("edm")) for peer in ("diffusers Heun", "k-diffusion heun")]
    dpm2 = ours("singlestep", order=2, rule="noise", two_point="midpoint")
    found += [Row(peer, *dpm2) for peer in ("diffusers KDPM2", "k-diffusion dpm_2")]
    found += [Row(peer, *ours("lms", order=4)) for peer in ("diffusers LMS", "k-diffusion lms")]
    steps = "their weights are those of equal steps in sigma/alpha"
    pndm = "started(lms(order=4), edm(), steps=1)", _pndm
    for peer, ended in (("diffusers PNDM", pndm), ("diffusers IPNDM", ours("lms", order=4))):
        found += [Row(peer, *ended, grids="even"), Row(peer, *ended, grids="karras log uneven", why=steps)]
    two = ours("multistep", order=2, two_point="midpoint")
    found += [Row(f"k-diffusion {name}", *two) for name in ("dpmpp_2m", "dpmpp_2m_sde midpoint")]
    found.append(Row("k-diffusion dpmpp_2m_sde heun", *ours("multistep", order=2)))
    three = ours("multistep", order=3)
    found += [
        Row("k-diffusion dpmpp_3m_sde", *three, why=third),
        Row("k-diffusion dpmpp_3m_sde", *shipped("data", "exact")),
        Row("k-diffusion dpmpp_3m_sde", *three, mode="mended"),
    ]
    two = ours("singlestep", order=2, two_point="midpoint")
    found += [Row(f"k-diffusion {name}", *two) for name in ("dpmpp_2s", "dpmpp_sde")]
    for peer, name, options in (
        ("diffusers DPMSolverMultistepScheduler dpmsolver++ midpoint 2 to zero", "multistep", {"two_point": "midpoint"}),
        ("diffusers EDMDPMSolver midpoint 2 to zero", "multistep", {"two_point": "midpoint"}),
        ("diffusers UniPC bh2 x0 2 to zero", "unipc", {}),
        ("diffusers DDIM", "ddim", {}), ("diffusers Euler", "ddim", {}), ("k-diffusion euler", "ddim", {}),
        ("diffusers Heun", "edm", {}), ("k-diffusion heun", "edm", {}),
        ("diffusers KDPM2", "singlestep", {"rule": "noise", "two_point": "midpoint"}),
        ("k-diffusion dpm_2", "singlestep", {"rule": "noise", "two_point": "midpoint"}),
        ("diffusers LMS", "lms", {}), ("k-diffusion lms", "lms", {}),
        ("k-diffusion dpmpp_2m", "multistep", {"two_point": "midpoint"}),
        ("k-diffusion dpmpp_2m_sde heun", "multistep", {}),
        ("k-diffusion dpmpp_2s", "singlestep", {"two_point": "midpoint"}),
        ("k-diffusion dpmpp_sde", "singlestep", {"two_point": "midpoint"}),
    ):  # fmt: skip
        found.append(Row(peer, *ours(name, **options), grids="zero"))
    third = ours("singlestep", order=3, rule="noise")[1]
    for rest in (1, 2):
        peer = f"k-diffusion dpm_fast, last step {rest}"
        found += [
            Row(peer, f"[fast by singlestep(order=3), rest {rest}]",
                functools.partial(fast, rest=rest, third=third), grids="log", why=single),
            Row(peer, f"[fast, rest {rest}]", functools.partial(fast, rest=rest), grids="log"),
        ]  # fmt: skip
    return found


def _pndm(denoise: Denoiser, schedule: Schedule) -> Sampler:
    return samplers.started(samplers.lms(denoise, schedule, order=4), samplers.edm(denoise, schedule), steps=1)


def problem(steps: int) -> dict[str, np.ndarray]:
    """Three anisotropic Gaussians in three dimensions, six starts, four grids."""
    rng = np.random.default_rng(0)
    roots = 0.4 * rng.normal(size=(3, 3, 3))
    uneven = np.cumsum(np.append(0, rng.uniform(0.2, 1.8, steps)))
    karras = np.linspace(TOP ** (1 / 7), 0.002 ** (1 / 7), steps + 1) ** 7
    return {
        "weights": np.array([0.2, 0.3, 0.5]),
        "means": 1.5 * rng.normal(size=(3, 3)),
        "covs": roots @ np.swapaxes(roots, 1, 2) + 0.05 * np.eye(3),
        "unit": rng.normal(size=(6, 3)),
        "grid:karras": karras,
        "grid:zero": np.append(karras[:-1], 0.0),
        "grid:log": np.geomspace(TOP, 0.002, steps + 1),
        "grid:even": np.linspace(10.0, 0.1, steps + 1),
        "grid:uneven": 20 * np.exp(-uneven * np.log(20 / 0.01) / uneven[-1]),
    }


class Ours:
    """Our end of every grid, for whatever is built; what was built before is not compiled again."""

    def __init__(self, given: dict[str, np.ndarray]) -> None:
        world = exact.Mixture(*(jnp.asarray(given[name]) for name in ("weights", "means", "covs")))
        one = exact.denoiser(world, Ratio())
        self.given, self.kept, self.denoise = given, {}, lambda z, t: jax.vmap(one, (0, None))(z, t)

    def __call__(self, row: Row, grid: str) -> np.ndarray:
        """z/alpha at the end."""
        if row.words not in self.kept:
            self.kept[row.words] = row.build(self.denoise, Ratio())
        sigmas, sampler = self.given[f"grid:{grid}"], self.kept[row.words]
        times = jnp.asarray(sigmas / TOP)
        first, last = (Ratio()(t)[0] for t in (times[0], times[-1]))
        z = jnp.asarray(self.given["unit"] * sigmas[0]) * first
        return np.asarray(samplers.sample(jax.random.key(0), sampler, z, times) / last)


def compare(
    given: dict[str, np.ndarray], peers: str
) -> tuple[list[tuple[Row, float, float]], list[str], dict[str, str]]:
    """Every row with its two differences, the versions of the peers, and what they raised."""
    script = Path(__file__).with_name("peers.py")
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("problem.npz", "result.npz")]
        np.savez(files[0], **given)
        subprocess.run([peers, str(script), *files], check=True)
        with np.load(files[1]) as stored:
            theirs = {name: stored[name] for name in stored.files}
    said = {"|".join(parts[:3]): parts[3] for parts in (note.split("|", 3) for note in theirs["notes"])}
    run, lines = Ours(given), []
    for row in rows():
        both = []
        for mode in ("plain", row.mode):
            apart = []
            for grid in row.grids.split():
                theirs_there = theirs.get(f"{row.peer}|{mode}|{grid}")
                if theirs_there is not None:
                    apart.append(np.max(np.abs(run(row, grid) - theirs_there)) / np.max(np.abs(theirs_there)))
            both.append(float(np.max(apart)) if apart else float("nan"))
        lines.append((row, *both))
    return lines, [str(version) for version in theirs["versions"]], said


def errors(given: dict[str, np.ndarray]) -> None:
    """Largest errors of two ways to do the same, on even steps in log-SNR from sigma/alpha = 5 to 1/20."""
    run = Ours(given)
    pairs = [(*ours("singlestep", order=3, rule=rule), alone(rule)) for rule in ("data", "noise")]

    def end(words: str, build: Build, steps: int) -> np.ndarray:
        given["grid:errors"] = np.geomspace(5.0, 0.05, steps + 1)
        return run(Row("", words, build), "errors")

    exactly = end(*ours("singlestep", order=3), 1000)
    sizes = (20, 40, 80, 160)
    print(f"  {'steps':62}" + "".join(f"{n:>9}" for n in sizes))
    for words, build, other in pairs:
        for one in ((words, build), other):
            apart = [np.max(np.abs(end(*one, n) - exactly)) for n in sizes]
            print(f"  {one[0]:62}" + "".join(f"{value:9.1e}" for value in apart), flush=True)


def main() -> None:
    """The table, what explains its lines, and how many have no explanation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="the Python of the environment that holds the peers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--errors", action="store_true", help="errors of two ways to do the same; needs no peers")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.errors:
        errors(problem(options.steps))
        return
    lines, versions, said = compare(problem(options.steps), options.peers)
    print(f"{', '.join(versions)}; {options.steps} steps; differences relative to the largest entry of the end")
    print(f"  {'peer':58} {'ours':66} {'plain':>8} {'double':>8}")
    unexplained = 0
    for row, plain, double in lines:
        mode = "" if row.mode == "double" else ", mended"
        agreed = double <= BOUND
        unexplained += not agreed and not row.why
        first = f"{row.peer}|{row.mode}|{row.grids.split()[0]}"
        why = "" if agreed else row.why or said.get(first, "UNEXPLAINED")
        grids = "" if len(row.grids.split()) == 4 else f" ({row.grids})"
        print(f"  {row.peer + mode + grids:58} {row.words:66} {plain:8.1e} {double:8.1e}  {why}")
    agreed = sum(double <= BOUND for _, _, double in lines)
    print(f"  {agreed} of {len(lines)} agree to {BOUND:.0e}; {unexplained} differ without an explanation")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
