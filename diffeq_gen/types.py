"""The four things that flow through every file: a Sample, a Time, a Point, a Key.

    z = alpha(t) x0 + sigma(t) eps,        eps ~ N(0, I),        t: 0 (data) -> 1 (noise)

A schedule is any function ``t -> (alpha, sigma)``; read once at one time, with its slopes, it is a `Point`.
Everything else in the package is a pure function of samples and points.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

__all__ = [
    "Denoiser",
    "Field",
    "Key",
    "Memory",
    "Point",
    "Prediction",
    "Sample",
    "Sampler",
    "Schedule",
    "Time",
    "checked_under_jit",
    "concrete",
    "dot",
    "pytree",
    "require",
    "static",
]

Sample = jax.Array
"""An array of any shape: data x0, noise eps, noisy sample z, or a prediction."""

Time = jax.Array | float
"""A scalar in [0, 1]: 0 is data, 1 is noise.  Many times at once is `jax.vmap`."""

Key = jax.Array
"""A typed key of `jax.random.key`."""

Memory = Any
"""What a sampler remembers between steps: a pytree of arrays, `()` where it remembers nothing."""

Cls = TypeVar("Cls", bound=type)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b to all the digits of its dtype.  Left alone, a GPU keeps 10 bits of a float32 factor (TF32), a TPU 7 (bfloat16)."""
    return jnp.matmul(a, b, precision="highest")


def static(**options: Any) -> Any:
    """A field of a `pytree` that is part of its structure (a function, a size), not one of its leaves."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(field_specifiers=(dataclasses.field, static), frozen_default=True)
def pytree(cls: Cls) -> Cls:
    """A noun: a frozen dataclass that is a JAX pytree and prints as its constructor call.

    The constructor checks what a user wrote; what JAX puts in its place (tracers, tangents, a whole batch) is not checked.
    """
    cls = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    cls.__repr__ = _constructor_call
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    statics = [field.name for field in fields if field.metadata.get("static")]

    def flatten(noun: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(noun, name)) for name in leaves]
        return keyed, tuple(getattr(noun, name) for name in statics)

    def unflatten(structure: tuple[Any, ...], children: Any) -> Any:
        noun = object.__new__(cls)
        for name, value in (*zip(leaves, children, strict=True), *zip(statics, structure, strict=True)):
            object.__setattr__(noun, name, value)
        return noun

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _constructor_call(self: Any) -> str:
    values = ", ".join(f"{field.name}={_literal(getattr(self, field.name))}" for field in dataclasses.fields(self))
    return f"{type(self).__name__}({values})"


def _literal(value: Any) -> str:
    if not concrete(value) or not hasattr(value, "tolist"):
        return getattr(value, "__qualname__", None) or repr(value)
    if jnp.ndim(value) == 0:
        return repr(value.tolist())
    return f"array({value.tolist()})" if value.size <= 64 else f"<{value.dtype}{list(value.shape)}>"


def concrete(value: Any) -> bool:
    """Whether a value is known now, and is not a tracer of `jit`, `vmap` or `grad`: only such values can be checked."""
    return not isinstance(value, jax.core.Tracer) and type(value) is not object and value is not None


_under_jit = contextvars.ContextVar("checked_under_jit", default=False)


@contextlib.contextmanager
def checked_under_jit() -> Iterator[None]:
    """Inside this context `require` also checks traced values, through `jax.experimental.checkify`.

    >>> import jax, jax.numpy as jnp
    >>> from jax.experimental import checkify
    >>> with checked_under_jit():
    ...     error, _ = jax.jit(checkify.checkify(lambda t: require(lambda t: t > 0, "t must be positive", t=t)))(-1.0)
    >>> print(error.get().split(" (")[0])
    t must be positive, got t=-1.0
    """
    token = _under_jit.set(True)
    try:
        yield
    finally:
        _under_jit.reset(token)


def require(holds: Callable[..., Any], message: str, **values: Any) -> None:
    """Raises ``ValueError: <message>, got name=value`` where ``holds(*values)`` is false, anywhere, for the given values.

    `holds` is written with operators alone: known values reach it as numbers or numpy arrays, also while tracing.
    Values that are only known under `jit` pass unchecked, unless `checked_under_jit` asks for `checkify`.
    Raises: ValueError.
    """
    if all(concrete(leaf) for value in values.values() for leaf in jax.tree.leaves(value)):
        known = {name: np.asarray(value) if isinstance(value, jax.Array) else value for name, value in values.items()}
        with np.errstate(all="ignore"):
            holding = np.all(holds(*known.values()))
        if not holding:
            raise ValueError(
                f"{message}, got {', '.join(f'{name}={_literal(value)}' for name, value in known.items())}"
            )
    elif _under_jit.get():
        got = ", ".join(f"{name}={{{name}}}" for name in values)
        checkify.check(jnp.all(holds(*values.values())), f"{message}, got {got}", **values)


@pytree
class Point:
    """A schedule read once: (t, alpha, sigma, d alpha/dt, d sigma/dt), so that z = alpha x0 + sigma eps.

    `alpha` and `sigma` are scalars, or arrays that broadcast against a sample: a linear corruption that is diagonal in
    some orthogonal basis is the same mathematics with an array-valued alpha.
    Theorems: slopes-are-derivatives.
    """

    t: Time
    alpha: jax.Array
    sigma: jax.Array
    alpha_dot: jax.Array
    sigma_dot: jax.Array

    @property
    def log_snr(self) -> jax.Array:
        """lambda = log(alpha^2 / sigma^2): +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    @property
    def log_snr_dot(self) -> jax.Array:
        """d lambda / dt = 2 (alpha' / alpha - sigma' / sigma), negative wherever noise is added."""
        return 2 * (self.alpha_dot / self.alpha - self.sigma_dot / self.sigma)


class Schedule(Protocol):
    """Any function t -> (alpha, sigma) with alpha, sigma > 0 inside (0, 1) and log(alpha/sigma) decreasing.

    The steps of `paths.bridge` go through a rest at pure noise (alpha = 0) or pure data (sigma = 0) as well.
    Two optional methods replace what is otherwise derived: ``log_snr(t)`` and ``time_at(log_snr)``.
    """

    def __call__(self, t: Time, /) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at time t."""


Denoiser = Callable[[Sample, Time], Sample]
"""(z, t) -> E[x0 | z], or any estimate of it."""

Field = Callable[[Sample, Time], Sample]
"""(z, t) -> a vector at z: a drift, a velocity, a score."""

Prediction = Callable[[Point], tuple[jax.Array, jax.Array]]
"""p -> (a, b): what a network predicts, as the linear form a x0 + b eps."""


class Sampler(NamedTuple):
    """An algorithm as two pure functions: ``init(z) -> memory``, ``step(noise, memory, z, t, s) -> (z, memory)``.

    A step goes from time t to an earlier time s.  It never draws: the loop hands it ``noise`` of shape
    (noises, *z.shape), independent standard normals, so that every step is a deterministic function that can be
    proven, coupled and pushed forward exactly.  With fewer than ``fewest`` steps a method never comes to its order.

    Any sampler owes the first four of its theorems, and the others where it claims them.
    Theorems: one-step-keeps-the-marginals, a-run-tends-to-the-marginals, rows-do-not-mix,
    a-step-is-affine-where-its-denoiser-is, a-point-keeps-its-law, a-straight-twin-has-the-same-states,
    a-run-is-of-second-order, a-run-is-of-third-order, a-run-is-of-fourth-order.
    """

    init: Callable[[Sample], Memory]
    step: Callable[[Sample, Memory, Sample, Time, Time], tuple[Sample, Memory]]
    noises: int = 0
    fewest: int = 1
