"""The solvers that people run today, on a given grid with an exact denoiser: run by their own Python, in its own process.

    PEERS_PYTHON benchmarks/solvers/peers.py PROBLEM.npz RESULT.npz           (`benchmarks.solvers.agreement` writes the first)

PROBLEM holds a mixture (weights, means, covs), grids of sigma/alpha that fall (`grid:NAME`) and where to start, in units of
the first of them (`unit`, shape (batch, d)).  RESULT holds z/alpha at the end of each grid, `PEER|MODE|GRID`:

    plain       float64 in, the library as it is; where that raises, float32 in
    double      the library made to compute in float64: `torch.float32` in the module of a scheduler is read as float64, and
                new tensors are float64
    mended      the same, with one place of its source read otherwise: what explains a disagreement

Nothing of `diffeq_gen` is imported.  Grids are handed over by setting `sigmas` (or the tables that a scheduler reads) after
`set_timesteps`; lower orders at the end, thresholds and noise are off.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import sys
import textwrap
import types
import warnings

import numpy as np

PACKAGES = ("torch", "diffusers", "k-diffusion", "stable-diffusion-sdkit", "comfylib")
OFFICIAL = {
    "dpm_solver": "ldm/models/diffusion/dpm_solver/dpm_solver.py",
    "uni_pc": "comfy/hazard/extra_samplers/uni_pc.py",
}
"""Packages on PyPI that carry the authors' own files, which import nothing but torch."""

VARY, VARYING = (
    "multistep_uni_pc_vary_update",
    (
        """                x_t = x_t - alpha_t * h_phi_ks[k + 1] * torch.einsum('bkchw,k->bchw', D1s, A_c[k][:-1])
            x_t = x_t - alpha_t * h_phi_ks[K] * (D1_t * A_c[k][-1])""",
        """                pass
            for k in range(K):
                past = 0 if K == 1 else torch.einsum('bkchw,k->bchw', D1s, A_c[k][:-1])
                x_t = x_t - alpha_t * h_phi_ks[k + 1] * (past + D1_t * A_c[k][-1])""",
    ),
)
"""UniPC's corrector with varying coefficients: the value at the end belongs to every derivative, not to one."""

DOUBLED_DIFFERENCE = ("D2 = (1.0 / (r0 + r1)) * (D1_0 - D1_1)", "D2 = (2.0 / (r0 + r1)) * (D1_0 - D1_1)")
"""F''/2 times h^2 for F'' times h^2, in the third-order multistep solvers."""


class Problem:
    """A grid, a mixture and a start, as tensors of one dtype; what is denoised is x = x0 + (sigma/alpha) eps."""

    def __init__(self, given, grid: str, dtype):
        import torch

        self.torch, self.dtype = torch, dtype
        tensor = lambda value: torch.as_tensor(np.asarray(value, np.float64))  # noqa: E731
        self.sigmas = np.asarray(given[f"grid:{grid}"], np.float64)
        self.x = tensor(given["unit"] * self.sigmas[0]).to(dtype)
        self.weights, self.means = tensor(given["weights"]), tensor(given["means"])
        self.variances, self.bases = torch.linalg.eigh(tensor(given["covs"]))
        self.steps = len(self.sigmas) - 1

    def tensor(self, values):
        """In the problem's dtype."""
        return self.torch.as_tensor(np.asarray(values, np.float64)).to(self.dtype)

    def denoise(self, x, sigma):
        """E[x0 | x] under the mixture, in float64 whatever comes in."""
        torch, shape = self.torch, x.shape
        x = x.reshape(len(x), -1).to(torch.float64)
        sigma = torch.as_tensor(sigma).to(torch.float64).reshape(-1)[0]
        spread = self.variances + sigma**2
        centred = torch.einsum("bkd,kde->bke", x[:, None] - self.means, self.bases)
        log_r = torch.log(self.weights) - 0.5 * torch.sum(centred**2 / spread + torch.log(spread), dim=-1)
        r = torch.softmax(log_r, dim=1)
        each = self.means + torch.einsum("bke,kde->bkd", centred * self.variances / spread, self.bases)
        return torch.einsum("bk,bkd->bd", r, each).reshape(shape).to(self.dtype)

    def inside(self, share: int):
        """The grid with every step cut into `share` parts that are even in log sigma."""
        if share == 1:
            return self.sigmas
        logs = np.log(self.sigmas)
        cuts = [logs[:-1] + (logs[1:] - logs[:-1]) * k / share for k in range(share)]
        inner = np.exp(np.stack(cuts, axis=1).reshape(-1))
        inner[::share] = self.sigmas[:-1]
        return np.append(inner, self.sigmas[-1])


def reread(function, old: str, new: str):
    """The function with one place of its source read otherwise."""
    source = textwrap.dedent(inspect.getsource(function))
    if old not in source:
        raise LookupError(f"{function.__qualname__} no longer says {old!r}")
    inner = dict(vars(sys.modules[function.__module__]))
    exec(compile(source.replace(old, new), function.__qualname__, "exec"), inner)
    return inner[function.__name__]


@contextlib.contextmanager
def doubled(module):
    """Inside, new tensors are float64, and the module reads `torch.float32` as float64."""
    import torch

    double = types.ModuleType("torch")
    double.__getattr__ = lambda name: torch.float64 if name == "float32" else getattr(torch, name)
    torch.set_default_dtype(torch.float64)
    kept = module.torch
    module.torch = double
    try:
        yield
    finally:
        module.torch = kept
        torch.set_default_dtype(torch.float32)


# diffusers


def scheduled(
    name: str, *, output: str = "epsilon", vp: bool = True, parts: int = 1, setup=None, change=None, **options
):
    """A scheduler of diffusers with `options`: what runs it on a problem, and the module to be made double."""
    module = importlib.import_module("diffusers.schedulers." + MODULES[name])
    cls = getattr(module, name)

    def run(problem, names):
        made = cls
        if names:
            method, *places = change[names[0]]
            made = type(name, (cls,), {method: reread(getattr(cls, method), *places)})
        scheduler = made(prediction_type=output, **options) if output else made(**options)
        sigmas = problem.inside(parts)
        scheduler.set_timesteps(len(sigmas) - 1)
        visits = (setup or _plain_grid)(scheduler, problem, sigmas)
        for flag in ("is_scale_input_called",):
            setattr(scheduler, flag, True)
        alpha = (lambda r: (1 + r**2) ** -0.5) if vp else (lambda r: 1.0)
        z = problem.x * alpha(sigmas[0])
        for r, t in visits:
            a = alpha(r)
            x0 = problem.denoise(z / a, r)
            eps = (z / a - x0) / r
            value = {"sample": x0, "epsilon": eps, "v_prediction": a * (eps - r * x0), None: a * (eps - r * x0),
                     "edm": _edm_output(x0, z, r)}["edm" if name.startswith("EDM") else output]  # fmt: skip
            z = scheduler.step(value, t, z).prev_sample
        return z / alpha(sigmas[-1])

    return run, module, tuple(change or ())


MODULES = {
    "DDIMScheduler": "scheduling_ddim",
    "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
    "DPMSolverSinglestepScheduler": "scheduling_dpmsolver_singlestep",
    "UniPCMultistepScheduler": "scheduling_unipc_multistep",
    "DEISMultistepScheduler": "scheduling_deis_multistep",
    "SASolverScheduler": "scheduling_sasolver",
    "EulerDiscreteScheduler": "scheduling_euler_discrete",
    "HeunDiscreteScheduler": "scheduling_heun_discrete",
    "KDPM2DiscreteScheduler": "scheduling_k_dpm_2_discrete",
    "LMSDiscreteScheduler": "scheduling_lms_discrete",
    "PNDMScheduler": "scheduling_pndm",
    "IPNDMScheduler": "scheduling_ipndm",
    "EDMDPMSolverMultistepScheduler": "scheduling_edm_dpmsolver_multistep",
}


def _edm_output(x0, x, r):
    """F, where D = c_skip x + c_out F, with sigma_data = 1/2."""
    return (x0 - 0.25 / (r**2 + 0.25) * x) / (r * 0.5 / (r**2 + 0.25) ** 0.5)


def _plain_grid(scheduler, problem, sigmas):
    scheduler.sigmas = problem.tensor(sigmas)
    scheduler.timesteps = problem.torch.arange(len(sigmas) - 1, 0, -1)
    scheduler.num_inference_steps = len(sigmas) - 1
    scheduler.set_begin_index(0)
    return list(zip(sigmas[:-1], scheduler.timesteps, strict=True))


def _heun_grid(scheduler, problem, sigmas):
    """Each value but the first is visited twice: where a step ends, and where the next begins."""
    twice = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:], sigmas[-1:]])
    return [(r, t) for r, t in _continuous_times(scheduler, problem, twice) if r > 0]


def _dpm2_grid(scheduler, problem, sigmas):
    between = np.sqrt(sigmas[:-1] * sigmas[1:])
    scheduler.sigmas = problem.tensor(np.concatenate([sigmas[:1], np.repeat(sigmas[1:], 2), sigmas[-1:]]))
    scheduler.sigmas_interpol = problem.tensor(np.concatenate([[0], np.repeat(between, 2), [0]]))
    scheduler.timesteps = problem.torch.arange(2 * problem.steps, 0, -1).to(problem.dtype)
    scheduler.set_begin_index(0)
    visited = np.stack([sigmas[:-1], between], axis=1).reshape(-1)
    return [(r, t) for r, t in zip(visited, scheduler.timesteps, strict=True) if r > 0]


def _continuous_times(scheduler, problem, sigmas):
    visits = _plain_grid(scheduler, problem, sigmas)
    scheduler.timesteps = scheduler.timesteps.to(problem.dtype)
    return [(r, t.to(problem.dtype)) for r, t in visits]


def _table(scheduler, problem, sigmas):
    """alphas_cumprod with one entry for each value of the grid, so that the timestep before n is n - 1."""
    scheduler.alphas_cumprod = problem.tensor(1 / (1 + sigmas[::-1] ** 2))
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps
    return [(sigmas[len(sigmas) - 1 - t], t) for t in range(len(sigmas) - 1, 0, -1)]


def _pndm_table(scheduler, problem, sigmas):
    (first, second, *others) = _table(scheduler, problem, sigmas)
    scheduler.prk_timesteps, scheduler.ets, scheduler.counter = np.array([]), [], 0
    return [first, second, second, *others]


def _ipndm_table(scheduler, problem, sigmas):
    alphas = (1 + sigmas**2) ** -0.5
    scheduler.alphas, scheduler.betas = problem.tensor(alphas), problem.tensor(alphas * sigmas)
    scheduler.timesteps = problem.torch.arange(len(sigmas) - 1, 0, -1)
    scheduler.set_begin_index(0)
    return list(zip(sigmas[:-1], scheduler.timesteps, strict=True))


def diffusers() -> dict:
    """Every deterministic scheduler that has a counterpart here."""
    last = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    repeated = {"mended": ("multistep_dpm_solver_third_order_update", *DOUBLED_DIFFERENCE)}
    multistep, singlestep = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    peers = {}
    for algorithm in ("dpmsolver++", "dpmsolver"):
        for solver in ("midpoint", "heun"):
            both = {**last, "algorithm_type": algorithm, "solver_type": solver}
            for order in (1, 2, 3):
                if order > 1 or solver == "midpoint":
                    change = repeated if order == 3 else None
                    peers[f"{multistep} {algorithm} {solver} {order}"] = scheduled(
                        multistep, solver_order=order, change=change, **both
                    )
            for order in (2, 3):
                peers[f"{singlestep} {algorithm} {solver} {order}"] = scheduled(
                    singlestep, solver_order=order, parts=order, **both
                )
    for solver in ("bh1", "bh2"):
        for x0 in (True, False):
            for order in (1, 2, 3):
                peers[f"UniPC {solver} {'x0' if x0 else 'eps'} {order}"] = scheduled(
                    "UniPCMultistepScheduler", solver_type=solver, predict_x0=x0, solver_order=order,
                    lower_order_final=False,
                )  # fmt: skip
    zero = {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}
    peers[f"{multistep} dpmsolver++ midpoint 2 to zero"] = scheduled(multistep, **zero)
    peers["UniPC bh2 x0 2 to zero"] = scheduled("UniPCMultistepScheduler", **zero)
    peers["EDMDPMSolver midpoint 2 to zero"] = scheduled("EDMDPMSolverMultistepScheduler", vp=False, **zero)
    for order in (1, 2, 3):
        peers[f"DEIS logrho {order}"] = scheduled("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
        edm = {**last, "solver_order": order, "vp": False, "change": repeated if order == 3 else None}
        peers[f"EDMDPMSolver midpoint {order}"] = scheduled("EDMDPMSolverMultistepScheduler", **edm)
    for algorithm in ("data_prediction", "noise_prediction"):
        for order in (1, 2, 3):
            peers[f"SASolver {algorithm} {order}"] = scheduled(
                "SASolverScheduler", algorithm_type=algorithm, predictor_order=order, corrector_order=order + 1,
                tau_func=lambda t: 0, lower_order_final=False,
            )  # fmt: skip
    peers["Euler"] = scheduled("EulerDiscreteScheduler", vp=False, setup=_continuous_times)
    peers["Heun"] = scheduled("HeunDiscreteScheduler", vp=False, setup=_heun_grid)
    peers["KDPM2"] = scheduled("KDPM2DiscreteScheduler", vp=False, setup=_dpm2_grid)
    peers["LMS"] = scheduled("LMSDiscreteScheduler", vp=False, setup=_continuous_times)
    for name, setup in {"DDIM": _table, "PNDM": _pndm_table}.items():
        more = {"clip_sample": False} if name == "DDIM" else {"skip_prk_steps": True}
        peers[name] = scheduled(f"{name}Scheduler", setup=setup, num_train_timesteps=50, **more)
    peers["IPNDM"] = scheduled("IPNDMScheduler", setup=_ipndm_table, output=None)
    return {f"diffusers {name}": peer for name, peer in peers.items()}


# k-diffusion


def karras() -> dict:
    """The samplers of k-diffusion, with eta = 0 where they have one.  Its package imports much; these two files do not need it."""
    where = importlib.util.find_spec("k_diffusion").submodule_search_locations
    for name in ("k_diffusion", "torchvision", "torchvision.transforms"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.transforms"].functional = None
    sys.modules["k_diffusion"].__path__ = list(where)
    sampling = importlib.import_module("k_diffusion.sampling")

    def sampled(name: str, *, change=None, **options):
        def run(problem, names):
            function = getattr(sampling, name)
            function = reread(function, *change[names[0]]) if names else function
            return function(problem.denoise, problem.x, problem.tensor(problem.sigmas), disable=True, **options)

        return run, sampling, tuple(change or ())

    def fast(problem, *, rest: int):
        last, first = (float(problem.sigmas[i]) for i in (-1, 0))
        evaluations = 3 * (problem.steps - 1) + rest
        return sampling.sample_dpm_fast(problem.denoise, problem.x, last, first, evaluations, disable=True)

    third = ("phi_3 = phi_2 / h_eta - 0.5", "phi_3 = 2 * (phi_2 / h_eta - 0.5)")
    peers = {name: sampled(f"sample_{name}") for name in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")}
    peers["dpmpp_2s"] = sampled("sample_dpmpp_2s_ancestral", eta=0.0)
    peers["dpmpp_2m_sde midpoint"] = sampled("sample_dpmpp_2m_sde", eta=0.0, solver_type="midpoint")
    peers["dpmpp_2m_sde heun"] = sampled("sample_dpmpp_2m_sde", eta=0.0, solver_type="heun")
    peers["dpmpp_3m_sde"] = sampled("sample_dpmpp_3m_sde", eta=0.0, change={"mended": third})
    peers["dpmpp_sde"] = sampled("sample_dpmpp_sde", eta=0.0)
    for rest in (1, 2):
        peers[f"dpm_fast, last step {rest}"] = (
            (lambda problem, names, rest=rest: fast(problem, rest=rest)),
            sampling,
            (),
        )
    return {f"k-diffusion {name}": peer for name, peer in peers.items()}


# The authors' own files


class Ratio:
    """The noise schedule that these files ask for, variance preserving, with sigma/alpha as its time."""

    def __init__(self, torch):
        self.torch, self.total_N, self.T = torch, 1000, 1.0

    def marginal_log_mean_coeff(self, r):
        return -0.5 * self.torch.log1p(r**2)

    def marginal_alpha(self, r):
        return (1 + r**2) ** -0.5

    def marginal_std(self, r):
        return r * (1 + r**2) ** -0.5

    def marginal_lambda(self, r):
        return -self.torch.log(r)

    def inverse_lambda(self, lam):
        return self.torch.exp(-lam)


def official() -> dict:
    """DPM-Solver as in stable-diffusion-sdkit, UniPC as in comfylib: copies of the files that their authors published."""

    def loaded(name: str):
        path = importlib.metadata.distribution(PACKAGES[3 + list(OFFICIAL).index(name)]).locate_file(OFFICIAL[name])
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    dpm, uni = loaded("dpm_solver"), loaded("uni_pc")

    def run(problem, solver, sample):
        schedule = Ratio(problem.torch)

        def model(z, r):
            x = z / schedule.marginal_alpha(r[0])
            return (x - problem.denoise(x, r[0])) / r[0]

        z = (problem.x * (1 + problem.sigmas[0] ** 2) ** -0.5)[..., None, None]
        z = sample(solver(model, schedule), z, problem.tensor(problem.sigmas))
        return z[..., 0, 0] * (1 + problem.sigmas[-1] ** 2) ** 0.5

    def dpm_solver(*, x0: bool, method: str, order: int, solver_type: str):
        def peer(problem, names):
            cls = dpm.DPM_Solver
            if names:
                place = [text.replace("(1.0 / (r0 + r1))", "expand_dims(1. / (r0 + r1), dims)")
                         .replace("(2.0 / (r0 + r1))", "expand_dims(2. / (r0 + r1), dims)") for text in DOUBLED_DIFFERENCE]  # fmt: skip
                third = "multistep_dpm_solver_third_update"
                cls = type("DPM_Solver", (cls,), {third: reread(getattr(cls, third), *place)})
            torch, outer = problem.torch, []

            def sample(solver, z, grid):
                def steps(*, t_T, t_0, N, **_):
                    if not outer:
                        outer.append(True)
                        return grid
                    return torch.exp(torch.linspace(np.log(t_T), np.log(t_0), N + 1, dtype=grid.dtype))

                solver.get_time_steps = steps
                count = problem.steps * (order if method == "singlestep_fixed" else 1)
                return solver.sample(z, steps=count, order=order, method=method, lower_order_final=False,
                                     solver_type=solver_type, t_start=problem.sigmas[0], t_end=problem.sigmas[-1])  # fmt: skip

            return run(problem, lambda model, schedule: cls(model, schedule, predict_x0=x0), sample)

        return peer, dpm, ("mended",) if (method, order) == ("multistep", 3) else ()

    def uni_pc(*, variant: str, order: int):
        options = {"order": order, "method": "multistep", "lower_order_final": False}

        def peer(problem, names):
            cls, together, ends = uni.UniPC, problem.x, []
            if names:
                cls = type("UniPC", (cls,), {VARY: reread(getattr(cls, VARY), *VARYING)})
            build = lambda model, schedule: cls(model, schedule, predict_x0=True, variant=variant)  # noqa: E731
            for x in [together] if variant != "vary_coeff" else together[:, None]:  # which takes one sample at a time
                problem.x = x
                ends.append(run(problem, build, lambda solver, z, grid: solver.sample(z, grid, **options)))
            return problem.torch.cat(ends)

        return peer, uni, ("mended",) if variant == "vary_coeff" and order > 1 else ()

    peers = {}
    for x0, rule in ((True, "x0"), (False, "eps")):
        for solver_type in ("dpm_solver", "taylor"):
            for method, orders in (("multistep", (2, 3)), ("singlestep_fixed", (2, 3))):
                for order in orders:
                    peers[f"DPM_Solver {rule} {method} {solver_type} {order}"] = dpm_solver(
                        x0=x0, method=method, order=order, solver_type=solver_type
                    )
    for variant in ("bh1", "bh2", "vary_coeff"):
        for order in (1, 2, 3):
            peers[f"UniPC {variant} x0 {order}"] = uni_pc(variant=variant, order=order)
    return {f"official {name}": peer for name, peer in peers.items()}


def outcomes(given) -> tuple[dict, dict]:
    """z/alpha at the end, by peer, mode and grid; and what a peer raised instead."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found, said = {}, {}
    grids = [key.removeprefix("grid:") for key in given.files if key.startswith("grid:")]
    peers = {name: peer for family in (diffusers, karras, official) for name, peer in family().items()}
    for (name, (run, module, changes)), grid in itertools.product(peers.items(), grids):
        for mode in ("plain", "double", *changes):
            names, dtypes = (
                ((), [torch.float64, torch.float32])
                if mode == "plain"
                else (changes[: mode in changes], [torch.float64])
            )
            for dtype in dtypes:
                try:
                    with contextlib.nullcontext() if mode == "plain" else doubled(module):
                        end = run(Problem(given, grid, dtype), names)
                    if torch.isfinite(end).all():
                        found[f"{name}|{mode}|{grid}"] = end.detach().to(torch.float64).numpy()
                    break
                except Exception as error:  # whatever a peer raises is what there is to say about it
                    said[f"{name}|{mode}|{grid}"] = (
                        f"{str(dtype).removeprefix('torch.')} raises {type(error).__name__}: {error}"
                    )
    return found, said


def main() -> None:
    """Reads a problem, runs every peer on it, writes the results; what they print is dropped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", help="an .npz that benchmarks.solvers.agreement wrote")
    parser.add_argument("result", help="the .npz to write")
    options = parser.parse_args()
    given = np.load(options.problem)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found, said = outcomes(given)
    versions = [
        f"Python {sys.version.split()[0]}",
        *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    ]
    notes = np.array([f"{key}|{value}" for key, value in said.items()], dtype=str)
    np.savez(options.result, versions=np.array(versions), notes=notes, **found)


if __name__ == "__main__":
    main()
