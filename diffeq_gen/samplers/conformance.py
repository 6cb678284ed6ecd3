"""What a step owes to the loop, whatever it computes: checks of its trace and of a short compiled run, not residuals.

    method : (denoise, schedule) -> Sampler,        conform(method) : Conformance

That what it computes is right is for the theorems to say: those of `theorems.about("sampler")` are asked of the same method.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.samplers.loop import taken
from diffeq_gen.schedules import Cosine, Flow
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time, require

__all__ = ["Check", "Conformance", "Method", "checked_method", "conform", "stateless"]

Method = Callable[[Denoiser, Schedule], Sampler]
"""What makes a sampler of a model: `ddim` is one, and so is a lambda that binds the options of another."""

Step = Callable[..., Sample]
"""(denoise, schedule, z, t, s) -> z_s, or (noise, denoise, schedule, z, t, s) -> z_s where it is handed noise."""

SHAPES = ((), (3,), (2, 3))
DTYPES = ("float32", "float64")
GRID = (1.0, 0.6, 0.3, 0.0)
DRAWS = ("random", "threefry", "rng", "callback")
"""In whose name a primitive shows that a step draws by itself, or asks Python."""


class Check(NamedTuple):
    """One thing that a step owes, whether it does it, and if not, at what it was seen."""

    name: str
    holds: bool
    reason: str


class Conformance(NamedTuple):
    """What `conform` found: the checks, and what is told of the method but not judged.

    `evaluations` of the denoiser a step, as its trace has them (the dearest branch; inf inside a loop of unknown length);
    `noises` rows of noise; `fewest` steps of a run; `opens`, whether it can start at alpha_t = 0.
    """

    checks: tuple[Check, ...]
    evaluations: float
    noises: int
    fewest: int
    opens: bool

    def __bool__(self) -> bool:
        return all(check.holds for check in self.checks)

    def __str__(self) -> str:
        rows = [f"  {check.name:17} {'holds' if check.holds else check.reason}" for check in self.checks]
        held = sum(check.holds for check in self.checks)
        told = (
            f"  evaluations a step: {self.evaluations:g}; rows of noise: {self.noises}; fewest steps: {self.fewest}; "
        )
        told += f"starts at alpha = 0: {'yes' if self.opens else 'no'}"
        return "\n".join([f"{held} of {len(rows)} checks hold (checks, not residuals)", *rows, told])


def stateless(step: Step, *, noises: int = 0) -> Method:
    """The method whose step is this function of (denoise, schedule, z, t, s), and which remembers nothing.

    With noises > 0 the step is a function of (noise, denoise, schedule, z, t, s), noise of shape (noises, *z.shape).

    >>> euler = stateless(lambda denoise, schedule, z, t, s: z + (t - s) * (denoise(z, t) - z) / t)  # of the flow
    >>> bool(conform(euler, schedule=Flow()))
    True

    Raises: ValueError where noises is negative.
    """
    require(lambda noises: noises >= 0, "noises must not be negative", noises=noises)

    def method(denoise: Denoiser, schedule: Schedule) -> Sampler:
        def taking(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
            return step(*((noise,) if noises else ()), denoise, schedule, z, t, s), memory

        return Sampler(lambda z: (), taking, noises)

    return method


def checked_method(method: Method, *, schedule: Schedule | None = None) -> Sampler:
    """The sampler that the method makes of some denoiser and this schedule, once it is seen to be one.

    Raises: TypeError where it is none.
    """
    wanted = "a method is (denoise, schedule) -> Sampler(init, step, noises)"
    if isinstance(method, Sampler):
        raise TypeError(f"{wanted}, got a Sampler, whose denoiser can no longer be chosen")
    if not callable(method):
        raise TypeError(f"{wanted}, got {method!r}")
    try:
        sampler = method(_denoise, Cosine(log_snr_min=-15.0) if schedule is None else schedule)
    except TypeError as error:
        raise TypeError(f"{wanted}, got {_name(method)}: {error}") from error
    if not isinstance(sampler, Sampler):
        raise TypeError(f"{wanted}, got {_name(method)}, which makes a {type(sampler).__name__}")
    return sampler


def conform(method: Method, *, schedule: Schedule | None = None) -> Conformance:
    """Whether a step keeps the shape and dtype of z and of its memory, traces under jit and vmap, is compiled once for all
    steps, draws nothing by itself, repeats to the bit, and is finite from t = 1 and to sigma_s = 0.

    It is traced for z of shapes (), (3,) and (2, 3) in float32 and float64, and run from 1 over 0.6 and 0.3 to 0; where no
    schedule is given it is the cosine from log-SNR -15 on.  A few seconds.  These are checks, not residuals: they say
    that a step can be run and proven, `theorems.about("sampler")` that it is right.
    Raises: TypeError where it is no method.
    """
    schedule = Cosine(log_snr_min=-15.0) if schedule is None else schedule
    sampler = checked_method(method, schedule=schedule)
    traced = {(shape, dtype): _Traced(method, schedule, shape, dtype) for shape in SHAPES for dtype in DTYPES}
    able = [one for one in traced.values() if not one.error]
    ran = [_Run(method, schedule) for _ in range(2)]
    checks = [
        Check("traces", *_first(one.error for one in traced.values())),
        *(Check(name, *_first(getattr(one, name) for one in able)) for name in ("shape", "dtype", "memory", "vmap")),
        Check("noise", *_first(one.draws for one in able)),
        Check("compiled once", *_first(one.compilations for one in ran)),
        Check("repeats", *_first([_differ(*ran)])),
        Check("finite at t = 1", *_first([ran[0].infinite(0)])),
        Check("finite at s = 0", *_first([ran[0].infinite(len(GRID) - 2)])),
    ]
    evaluations = max((one.evaluations for one in able), default=math.nan)
    opens = not _Run(method, Flow(), GRID[:2]).infinite(0)
    return Conformance(tuple(checks), evaluations, sampler.noises, sampler.fewest, opens)


def _denoise(z: Sample, t: Time) -> Sample:
    """Any prediction: smooth, no constant, each entry by itself."""
    return jnp.tanh(0.75 * z + 2 * t) + 0.375 * z - t


@jax.jit
def _evaluation(z: Sample, t: Time) -> Sample:
    """The same under a name of its own, by which it is found in a trace."""
    return _denoise(z, t)


def _name(method: Method) -> str:
    return getattr(method, "__qualname__", None) or repr(method)


def _first(reasons: Any) -> tuple[bool, str]:
    reason = next((reason for reason in reasons if reason), "")
    return not reason, reason


def _told(error: Exception) -> str:
    """The first sentence of an exception, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:200]}"


class _Traced:
    """One step as JAX traces it for z of this shape and dtype, in a process where float64 is on so that a leak shows."""

    def __init__(self, method: Method, schedule: Schedule, shape: tuple[int, ...], dtype: str) -> None:
        self.error = self.shape = self.dtype = self.memory = self.vmap = self.draws = ""
        at = f"for z of shape {shape} in {dtype}"
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            try:
                sampler = method(_evaluation, schedule)
                z, t = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), dtype)
                noise = jax.ShapeDtypeStruct((sampler.noises, *shape), dtype)
                memory = jax.eval_shape(sampler.init, z)
                jaxpr, after = jax.make_jaxpr(sampler.step, return_shape=True)(noise, memory, z, t, t)
                after_z, after_memory = after
            except Exception as error:
                self.error = f"{_told(error)}, {at}"
                return
            self.shape = "" if after_z.shape == shape else f"a step makes {after_z.shape} of {shape}"
            self.dtype = (
                "" if after_z.dtype == dtype else f"a step makes {after_z.dtype} of {dtype}, where float64 is enabled"
            )
            self.memory = "" if _kinds(after_memory) == _kinds(memory) else (
                f"the memory is {_kinds(memory)} before a step and {_kinds(after_memory)} after it, {at}")  # fmt: skip
            drawing = sorted(name for name in _primitives(jaxpr.jaxpr) if any(word in name for word in DRAWS))
            self.draws = f"a step draws by itself, or asks Python: {', '.join(drawing)}" if drawing else ""
            self.evaluations = _evaluations(jaxpr.jaxpr, math.prod(shape))
            many = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), one)
                    for one in (noise, memory, z, t, t)]  # fmt: skip
            try:
                jax.eval_shape(jax.vmap(sampler.step), *many)
            except Exception as error:
                self.vmap = f"{_told(error)}, {at}"


def _kinds(memory: Memory) -> Any:
    """The structure of a memory as text, each leaf by its dtype and shape."""
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", memory)).replace("'", "")


class _Run:
    """A short run in float32, each step a call of one compiled function."""

    def __init__(self, method: Method, schedule: Schedule, grid: tuple[float, ...] = GRID) -> None:
        self.states, self.error, traces = [], "", []
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            try:
                sampler = method(_denoise, schedule)

                @jax.jit
                def step(noise: Sample, *state: Any) -> tuple[Sample, Memory]:
                    traces.append(None)
                    return taken(noise, sampler, *state)

                z = jnp.asarray([0.5, -1.25, 2.0], "float32")
                memory, rows = jax.jit(sampler.init)(z), range(1, sampler.noises + 1)
                noise = jnp.asarray(np.array([[0.3 * k, -0.7, 0.2] for k in rows]).reshape(-1, 3), "float32")
                for t, s in itertools.pairwise(jnp.asarray(grid, "float32")):
                    z, memory = step(noise, memory, z, t, s)
                    self.states.append(np.asarray(z))
            except Exception as error:
                self.error = _told(error)
        again = f"a step is compiled anew: {len(traces)} times in {len(grid) - 1} steps" if len(traces) > 1 else ""
        self.compilations = self.error or again

    def infinite(self, i: int) -> str:
        """What is wrong with the state after step i, if anything is."""
        if len(self.states) <= i:
            return self.error
        return "" if np.all(np.isfinite(self.states[i])) else f"z is {self.states[i].tolist()} after that step"


def _differ(one: _Run, other: _Run) -> str:
    for i, (a, b) in enumerate(zip(one.states, other.states, strict=False)):
        if not np.array_equal(a, b, equal_nan=True):
            return f"two traces of step {i + 1} of one run give {a.tolist()} and {b.tolist()}"
    return one.error


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    values = itertools.chain(*(v if isinstance(v, tuple | list) else (v,) for v in eqn.params.values()))
    opened = (getattr(value, "jaxpr", value) for value in values)
    return [value for value in opened if hasattr(value, "eqns")]


def _primitives(jaxpr: Any) -> set[str]:
    inside = (_primitives(inner) for eqn in jaxpr.eqns for inner in _inner(eqn))
    return functools.reduce(set.union, inside, {eqn.primitive.name for eqn in jaxpr.eqns})


def _evaluations(jaxpr: Any, size: int) -> float:
    """How often the denoiser is asked: of branches the dearest, of a scan each turn, of a batch each row."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if _evaluation.__name__ in str(eqn.params.get("name", "")):
            total += math.prod(eqn.outvars[0].aval.shape) / size
            continue
        inside = [_evaluations(inner, size) for inner in _inner(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inside)
        elif eqn.primitive.name == "while":
            total += math.inf if any(inside) else 0.0
        else:
            total += sum(inside) * eqn.params.get("length", 1)
    return total
