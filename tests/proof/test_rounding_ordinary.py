"""The ordinary formulas against the rules that they stand for, on operands of which many are anything but ordinary."""

from typing import Any

import jax
import numpy as np
import pytest

from diffeq_gen.proof import rounding, rounding_rules
from diffeq_gen.proof.known import ELEMENTWISE, FLOAT
from diffeq_gen.proof.rounding_ordinary import elementwise, mended, powers
from diffeq_gen.proof.rounding_rules import Ball

FUNCTIONS = {**FLOAT, **ELEMENTWISE}
COUNT = 2000


def numbers(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    """Half of them within [-1.2, 1.2], the others of any size; a tenth are zeros, infinities, nan, subnormals."""
    limits = np.finfo(dtype)
    x = np.where(
        rng.random(COUNT) < 0.5,
        rng.uniform(-1.2, 1.2, COUNT),
        rng.normal(size=COUNT) * 10.0 ** rng.uniform(-8, 8, COUNT),
    )
    corners = [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        np.inf,
        -np.inf,
        np.nan,
        limits.tiny,
        limits.tiny / 4,
        limits.max,
        -limits.max / 2,
    ]
    return np.where(rng.random(COUNT) < 0.1, rng.choice(np.asarray(corners, dtype), COUNT), x.astype(dtype))


def radii(rng: np.random.Generator, x: np.ndarray) -> np.ndarray | None:
    """None, or radii from far below an ulp to ten times the number, with exact and with lost entries."""
    if rng.random() < 0.3:
        return None
    e = np.maximum(np.abs(x) * 10.0 ** rng.uniform(-17, 1, x.shape), np.finfo(x.dtype).tiny)
    e = np.where(np.isnan(e) | (rng.random(x.shape) < 0.02), np.inf, np.where(rng.random(x.shape) < 0.05, 0.0, e))
    return e.astype(x.dtype)


def same(got: Any, want: Any, excused: Any = False) -> None:
    """Equal to within the reserve that every radius has for its own rounding."""
    assert got.shape == want.shape and got.dtype == want.dtype
    near = (got == want) | (np.abs(got - want) <= 14 * np.finfo(want.dtype).eps * want) | excused
    assert near.all(), (got[~near][:3], want[~near][:3])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", sorted((set(rounding_rules.UNARY) & set(FUNCTIONS)) | {"square"}))
def test_unary_agrees(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(len(name))
    with np.errstate(all="ignore"), jax.enable_x64(True):
        for _ in range(4):
            x = numbers(rng, dtype)
            ball, y = Ball(x, radii(rng, x)), FUNCTIONS[name](x)
            same(elementwise(name, y, ball), rounding_rules.unary(name, y, ball))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [-2, 1, 2, 3, 5])
def test_powers_agree(n: int, dtype: Any) -> None:
    rng = np.random.default_rng(n + 9)
    with np.errstate(all="ignore"), jax.enable_x64(True):
        for _ in range(4):
            x = numbers(rng, dtype)
            ball, y = Ball(x, radii(rng, x)), x**n
            rule = lambda y, x: rounding.integer_power(y, x, n)  # noqa: E731
            same(mended(rule, powers(n), y, ball), rule(y, ball))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "max", "min", "pow", "atan2"])
def test_binary_agrees(name: str, dtype: Any) -> None:
    """Also for numbers that are no arrays, and for columns that broadcast."""
    rng = np.random.default_rng(len(name))
    with np.errstate(all="ignore"), jax.enable_x64(True):
        for constant in (None, 2.0, 3.0, 0.1):
            for turn in (False, True):
                x, z = numbers(rng, dtype), numbers(rng, dtype)
                a = Ball(x, radii(rng, x))
                b = Ball(z, radii(rng, z)) if constant is None else Ball(np.asarray(constant, dtype))
                if constant is None and turn:
                    column = z.reshape(-1, 4)[:, :1]
                    a, b = Ball(x.reshape(-1, 4), None), Ball(column, radii(rng, column))
                a, b = (b, a) if turn else (a, b)
                y = FUNCTIONS[name](a.value, b.value)
                nothing = (y == 0) & (np.broadcast_to(a.value, y.shape) == 0) if name == "div" else False
                same(elementwise(name, y, a, b), rounding_rules.BINARY[name](y, a, b), nothing)


def test_subnormal_results_have_a_radius() -> None:
    """Numpy keeps a difference that XLA flushes: its radius is the smallest normal number, though no digit was rounded."""
    tiny = np.finfo(np.float64).tiny
    a, b = np.full(100, 1.5 * tiny), np.full(100, -1.25 * tiny)
    assert np.all(elementwise("add", a + b, Ball(a), Ball(b)) >= tiny)


def test_exact_zero_stays_exact() -> None:
    zero, x = np.zeros(100), np.linspace(1, 2, 100)
    inexact = Ball(x, 1e-3 * x)
    assert not np.any(elementwise("mul", zero * x, Ball(zero), inexact))
    assert not np.any(elementwise("div", zero / x, Ball(zero), inexact))
    assert np.all(np.isinf(elementwise("div", zero / x, Ball(zero), Ball(x, 2 * x))))


def test_complex_numbers_are_not_exact() -> None:
    """A complex result rounds; it has no rule, and says so, also where its operands are exact."""
    with pytest.raises(NotImplementedError, match="no rounding rule"):
        rounding.bounded(lambda x: abs(jax.lax.complex(x, x)))(np.ones(3, np.float32))
