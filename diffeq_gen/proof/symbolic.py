"""The symbolic judge: the shipped code itself, for every schedule and every prediction, proven equal to the last digit.

    f(**case) -> (left, right)  --trace-->  jaxpr  --read over sympy-->  left - right  --normal form-->  0

An `Opaque` schedule has no numbers, only symbols alpha(t), sigma(t) and their slopes: what is proven of it holds for
all.  The standing hypotheses: alpha, sigma > 0, times in (0, 1), log-SNR larger at the earlier time.
Three verdicts: *proven* by algebra alone; *refuted* by a point evaluated to 50 digits; *undecided*, with the reason.
sympy belongs to the extra ``prove`` and is imported when a proof begins.
"""

import contextlib
import dataclasses
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad

from diffeq_gen.types import Denoiser, Point, Sample, Time

__all__ = ["Opaque", "Proof", "opaque_denoiser", "opaque_function", "prove"]

_CHAINS = (("t", "s", "r"), ("p", "q"))  # from the noisiest to the cleanest
_POSITIVE = ("alpha", "sigma")

_opaque = Primitive("opaque")


@_opaque.def_impl
def _no_numbers(*operands: Any, name: str, **_: Any) -> None:
    raise TypeError(f"{name} is opaque: it can be traced and proven about, but has no numbers")


@_opaque.def_abstract_eval
def _shape(*operands: Any, name: str, shape: tuple[int, ...], slopes: tuple[int, ...], positive: bool) -> Any:
    wide = sum((operands[i].shape for i in slopes), shape)
    return jax.core.ShapedArray(wide, jnp.result_type(*(operand.dtype for operand in operands)))


def _slope(primals: Any, tangents: Any, *, name: str, shape: Any, slopes: Any, positive: bool) -> tuple[Any, Any]:
    """d f = sum_i (df/dx_i) . dx_i, where df/dx_i is the opaque function with one more slope."""
    value = _opaque.bind(*primals, name=name, shape=shape, slopes=slopes, positive=positive)
    total = ad.Zero.from_primal_value(value) if hasattr(ad.Zero, "from_primal_value") else jnp.zeros_like(value)
    for i, tangent in enumerate(tangents):
        if type(tangent) is not ad.Zero:
            slope = _opaque.bind(*primals, name=name, shape=shape, slopes=(*slopes, i), positive=positive)
            term = jnp.tensordot(slope, tangent, jnp.ndim(tangent)) if jnp.ndim(tangent) else slope * tangent
            total = term if type(total) is ad.Zero else total + term
    return value, total


ad.primitive_jvps[_opaque] = _slope


def opaque_function(name: str, *, like: int | None = None, positive: bool = False) -> Callable[..., jax.Array]:
    """A function of which only the name is known: same arguments, same value; `jax.jvp` gives its opaque slopes.

    The value is a scalar, or has the shape of argument number `like`; `positive` holds of the value, not of slopes.
    """

    def function(*arguments: jax.Array) -> jax.Array:
        arrays = [jnp.asarray(argument, jnp.result_type(argument, float)) for argument in arguments]
        shape = () if like is None else arrays[like].shape
        return _opaque.bind(*arrays, name=name, shape=shape, slopes=(), positive=positive)

    function.__name__ = function.__qualname__ = name
    return function


@dataclasses.dataclass(frozen=True)
class Opaque:
    """A schedule t -> (alpha(t), sigma(t)) of which nothing is known but the hypotheses of its family.

    ``"any"``: alpha, sigma > 0.  ``"variance-preserving"``: alpha = (1 - m^2)/(1 + m^2), sigma = 2 m/(1 + m^2), which
    is every solution of alpha^2 + sigma^2 = 1.  ``"variance-exploding"``: alpha = 1.
    ``"straight"``: alpha = 1 - sigma.  `name` tells two schedules apart.  Raises: ValueError for another family.
    """

    assuming: str = "any"
    name: str = ""

    def __post_init__(self) -> None:
        families = ("any", "variance-preserving", "variance-exploding", "straight")
        if self.assuming not in families:
            raise ValueError(f"assuming must be one of {', '.join(families)}, got assuming={self.assuming!r}")

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at time t, as opaque scalars."""
        if self.assuming == "variance-preserving":
            m = opaque_function(f"tan_half{self.name}", positive=True)(t)
            return (1 - m**2) / (1 + m**2), 2 * m / (1 + m**2)
        sigma = opaque_function(f"sigma{self.name}", positive=True)(t)
        if self.assuming == "any":
            return opaque_function(f"alpha{self.name}", positive=True)(t), sigma
        return (1 - sigma if self.assuming == "straight" else jnp.ones_like(sigma)), sigma


def opaque_denoiser(*, name: str = "x0_hat") -> Denoiser:
    """(z, t) -> x0_hat(z, t), any prediction whatever, of the shape of z."""
    function = opaque_function(name, like=0)

    def denoise(z: Sample, t: Time) -> Sample:
        z = jnp.asarray(z)
        return function(z, jnp.asarray(t, z.dtype))

    return denoise


@dataclasses.dataclass(frozen=True)
class Proof:
    """left - right = 0: `verdict` is "proven", "refuted" or "undecided"; `difference` is what is left of it (sympy)."""

    verdict: str
    difference: Any
    seconds: float
    reason: str

    @property
    def proven(self) -> bool:
        """Whether the difference was reduced to zero by algebra."""
        return self.verdict == "proven"


def prove(
    f: Callable[..., tuple[Any, Any]],
    *,
    where: Callable[..., Any] | None = None,
    seconds: float = 20.0,
    points: int = 3,
    **case: Any,
) -> Proof:
    """Whether left = right for (left, right) = f(**case), for all values of the numbers in `case`.

    Every number in `case` (floats, small arrays, leaves of a `Point`) becomes a real symbol: its value does not matter.
    What is callable (schedules, denoisers, predictions) and whole numbers stay as they are.  Numbers named t, s, r lie
    in (0, 1) with t > s > r; alpha and sigma of a point, and of the value named `schedule` at those times, are
    positive, with log-SNR larger at s than at t, and at q than at p.  ``where(**case)`` returns further quantities
    that are positive.  The claim is for all real values under these hypotheses at which both sides are defined.
    Raises: ImportError without sympy; ValueError where the two sides differ in structure or shape.
    """
    judge = _judge()
    start = time.perf_counter()
    traced = _trace(f, where, case)
    try:
        with _alarm(seconds):
            verdict, difference, reason = judge.decide(*_read(traced), points=points)
    except TimeoutError:
        verdict, difference, reason = "undecided", None, f"no normal form within {seconds:g} s"
    except NotImplementedError as gap:
        verdict, difference, reason = "undecided", None, str(gap)
    return Proof(verdict, difference, time.perf_counter() - start, reason)


def _judge() -> Any:
    try:
        import sympy  # noqa: F401
    except ImportError as missing:
        raise ImportError("symbolic proofs need sympy: pip install 'diffeq-gen[prove]'") from missing
    from diffeq_gen.proof import deciding

    return deciding


def _named(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(numbers, the rest): what becomes symbols, and what is held as it is."""
    numbers, rest = {}, {}
    for name, value in case.items():
        leaves = jax.tree.leaves(value)
        symbolic = not callable(value) and leaves and all(np.issubdtype(np.result_type(x), np.floating) for x in leaves)
        (numbers if symbolic else rest)[name] = value
    return numbers, rest


@dataclasses.dataclass(frozen=True)
class _Traced:
    jaxpr: Any
    paths: list[tuple[str, tuple[int, ...]]]
    sizes: tuple[int, int]


def _trace(f: Callable[..., Any], where: Callable[..., Any] | None, case: dict[str, Any]) -> _Traced:
    numbers, rest = _named(case)
    sizes = []

    def sides(numbers: dict[str, Any]) -> list[Any]:
        left, right = f(**numbers, **rest)
        if jax.tree.structure(left) != jax.tree.structure(right):
            raise ValueError(f"the sides differ in structure: {jax.tree.structure(left)}, {jax.tree.structure(right)}")
        lefts, rights = jax.tree.leaves(left), jax.tree.leaves(right)
        for one, other in zip(lefts, rights, strict=True):
            if jnp.shape(one) != jnp.shape(other):
                raise ValueError(f"the sides differ in shape: {jnp.shape(one)}, {jnp.shape(other)}")
        facts = list(_hypotheses(numbers, rest.get("schedule")))
        facts += jax.tree.leaves(where(**numbers, **rest)) if where else []
        sizes.extend((len(lefts), len(facts)))
        return [*lefts, *rights, *facts]

    with jax.enable_x64(True):
        numbers = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), numbers)
        jaxpr = jax.make_jaxpr(sides)(numbers)
    paths = [
        (jax.tree_util.keystr(path, simple=True, separator="."), jnp.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(numbers)
    ]
    return _Traced(jaxpr, paths, (sizes[0], sizes[1]))


def _hypotheses(numbers: dict[str, Any], schedule: Any) -> Iterator[Any]:
    """What is positive by the standing hypotheses: 1 - t, t - s, alpha, sigma, and the gaps of log-SNR."""
    for chain in _CHAINS:
        present = [numbers[name] for name in chain if name in numbers]
        times = [value for value in present if not isinstance(value, Point) and jnp.ndim(value) == 0]
        pairs = [(p.alpha, p.sigma) for p in present if isinstance(p, Point)]
        pairs += [schedule(t) for t in times] if schedule is not None else []
        yield from (1 - t for t in times)
        yield from (t - s for t, s in itertools.pairwise(times))
        yield from itertools.chain.from_iterable(pairs)
        for (alpha_p, sigma_p), (alpha_q, sigma_q) in itertools.combinations(pairs, 2):
            yield sigma_p * alpha_q - alpha_p * sigma_q
            yield 2 * (jnp.log(alpha_q / alpha_p) + jnp.log(sigma_p / sigma_q))


def _read(traced: _Traced) -> tuple[list[Any], list[Any], list[Any], set[Any]]:
    """(lefts, rights, facts, symbols in (0, 1)), all as sympy expressions."""
    import sympy

    from diffeq_gen.proof.tracing import interpret

    operands, unit = [], set()
    for path, shape in traced.paths:
        symbols = np.empty(shape, object)
        for i, index in enumerate(np.ndindex(*shape)):
            time_like = not shape and (path in _CHAINS[0] or path.endswith(".t"))
            positive = True if time_like or path.rsplit(".")[-1] in _POSITIVE else None
            symbols[index] = sympy.Symbol(path + (str(i) if shape else ""), real=True, positive=positive)
            unit |= {symbols[index]} if time_like else set()
        operands.append(symbols)
    with jax.enable_x64(True):
        outputs = interpret(traced.jaxpr, operands)
    count, _ = traced.sizes
    lefts, rights, facts = outputs[:count], outputs[count : 2 * count], outputs[2 * count :]
    spread = [[entry for array in part for entry in array.ravel()] for part in (lefts, rights, facts)]
    return spread[0], spread[1], spread[2], unit


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside the block after so many seconds; outside the main thread there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, frame: Any) -> None:
        while frame is not None:  # raised inside a finaliser it would be swallowed: the next ring will do
            if frame.f_code.co_name in ("_xla_gc_callback", "__del__"):
                return
            frame = frame.f_back
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    remaining = signal.setitimer(signal.ITIMER_REAL, seconds, 0.25)
    try:
        yield
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, *remaining)
                break
            except TimeoutError:
                continue
        signal.signal(signal.SIGALRM, before)
