"""The symbolic judge: what is proven of the shipped code, what is refuted, and what it must never claim."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, paths, predictions, schedules
from diffeq_gen.proof.symbolic import Opaque, opaque_denoiser, opaque_function, prove
from diffeq_gen.types import Point

ANYWHERE = Point(0.5, 0.5, 0.5, 0.5, 0.5)
LINEAR_FORMS = ("data", "noise", "score", "v", "velocity")
PREDICTIONS = [*(getattr(predictions, name) for name in LINEAR_FORMS), predictions.edm(0.5)]


def three_forms_of_ddim(schedule, z, x0, t, s, factor=1.0):
    p, q = schedules.at(schedule, t), schedules.at(schedule, s)
    eps = (z - p.alpha * x0) / p.sigma
    half = paths.gap(p, q) / 2
    lerp = q.alpha * x0 + q.sigma * eps
    x_form = q.sigma / p.sigma * z - q.alpha * jnp.expm1(-half * factor) * x0
    eps_form = q.alpha / p.alpha * z - q.sigma * jnp.expm1(half) * eps
    return (lerp, lerp), (x_form, eps_form)


def ddpm_and_double_ddim(p, q, z, x0, eps, kappa, overshoot=1.0):
    c_z, c_x, std = paths.bridge(p, q)
    alpha_r = kappa * q.alpha
    sigma_r = alpha_r * p.sigma / p.alpha * jnp.exp(-overshoot * paths.gap(p, q))
    r = Point(q.t, alpha_r, sigma_r, q.alpha_dot, q.sigma_dot)
    z_r = alpha_r * x0 + sigma_r * (z - p.alpha * x0) / p.sigma
    return c_z * z + c_x * x0 + std * eps, paths.renoise(z_r, eps, q, r)


def velocity_and_drift(schedule, x0, eps, t, factor=1.0, sign=1.0):
    p = schedules.at(schedule, t)
    z = paths.perturb(x0, eps, p)
    f, g2 = p.alpha_dot / p.alpha, -(p.sigma**2) * p.log_snr_dot
    moved = jax.jvp(lambda t: paths.perturb(x0, eps, schedules.at(schedule, t)), (t,), (jnp.ones_like(t),))[1]
    return moved, f * z - sign * factor * g2 * (-eps / p.sigma) / 2


def refuted(proof):
    return proof.verdict == "refuted" and not proof.proven


@pytest.mark.parametrize("family", ["any", "variance-preserving", "variance-exploding", "straight"])
def test_ddim_has_three_forms_for_every_schedule(family):
    proof = prove(three_forms_of_ddim, schedule=Opaque(family), z=np.ones(2), x0=np.ones(2), t=0.5, s=0.2)
    assert proof.proven and proof.difference == 0 and proof.seconds < 20, proof


def test_ddim_of_any_prediction_is_one_bridge():
    def sides(schedule, denoise, z, t, s):
        p, q = schedules.at(schedule, t), schedules.at(schedule, s)
        x0 = denoise(z, t)
        c_z, c_x, _ = paths.bridge(p, q, jnp.zeros_like(p.alpha))
        return c_z * z + c_x * x0, q.alpha * x0 + q.sigma * (z - p.alpha * x0) / p.sigma

    assert prove(sides, schedule=Opaque(), denoise=opaque_denoiser(), z=np.zeros(2), t=0.5, s=0.2).proven


def test_ddpm_is_ddim_to_twice_the_gap_and_back():
    case = {"p": ANYWHERE, "q": ANYWHERE, "z": 1.0, "x0": 1.0, "eps": 1.0, "kappa": 1.0}
    positive = {"where": lambda kappa, **_: kappa}
    assert prove(ddpm_and_double_ddim, **case, **positive).proven
    assert refuted(prove(lambda **case: ddpm_and_double_ddim(**case, overshoot=0.75), **case, **positive))


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_conversions_round_trip(source, target):
    def sides(schedule, value, z, t):
        p = schedules.at(schedule, t)
        return predictions.convert(predictions.convert(value, z, p, source, target), z, p, target, source), value

    assert prove(sides, schedule=Opaque(), value=1.0, z=1.0, t=0.5).proven


def test_velocity_is_the_probability_flow_drift():
    case = {"schedule": Opaque(), "x0": 1.0, "eps": 1.0, "t": 0.5}
    assert prove(velocity_and_drift, **case).proven


@pytest.mark.parametrize("fault", [{"factor": 2.0}, {"sign": -1.0}, {"factor": 1 + 1e-9}])
def test_faults_in_the_drift_are_refuted(fault):
    case = {"schedule": Opaque(), "x0": 1.0, "eps": 1.0, "t": 0.5}
    assert refuted(prove(lambda **case: velocity_and_drift(**case, **fault), **case))


def test_a_dropped_half_in_ddim_is_refuted_and_says_where():
    proof = prove(
        lambda **case: three_forms_of_ddim(**case, factor=2.0), schedule=Opaque(), z=1.0, x0=1.0, t=0.5, s=0.2
    )
    assert refuted(proof) and "alpha(" in proof.reason and proof.difference != 0


def test_an_identity_of_one_family_is_not_one_of_all():
    def sides(schedule, t):
        p = schedules.at(schedule, t)
        return p.alpha * p.alpha_dot, -p.sigma * p.sigma_dot

    assert prove(sides, schedule=Opaque("variance-preserving"), t=0.5).proven
    assert refuted(prove(sides, schedule=Opaque(), t=0.5))


@pytest.mark.parametrize("schedule", [schedules.Flow(), schedules.Cosine(), schedules.VE()])
def test_closed_forms_of_log_snr_and_clocks(schedule):
    def sides(t):
        log_snr = clocks.log_snr(schedule, t)
        return (log_snr, clocks.time_at(schedule, log_snr)), (schedules.at(schedule, t).log_snr, t)

    assert prove(sides, t=0.5).proven


def test_second_slopes_are_symmetric_and_opaque():
    g = opaque_function("g")

    def sides(x, y):
        return jax.grad(jax.grad(g, 0), 1)(x, y), jax.grad(jax.grad(g, 1), 0)(x, y)

    assert prove(sides, x=1.0, y=1.0).proven
    assert refuted(prove(lambda x, y: (jax.grad(g, 0)(x, y), jax.grad(g, 1)(x, y)), x=1.0, y=1.0))


def test_pi_is_pi_only_when_it_is_pi():
    assert prove(lambda x: (jnp.cos(jnp.pi * x / 2), jnp.sin(math.pi / 2 * (1 - x))), x=1.0).proven
    assert refuted(prove(lambda x: (jnp.cos(3.14159 * x / 2), jnp.cos(jnp.pi * x / 2)), x=1.0))


def test_constants_are_read_as_written():
    import sympy

    from diffeq_gen.proof.tracing import constant

    pi, rational = sympy.pi, sympy.Rational
    meant = {0.5: rational(1, 2), 0.1: rational(1, 10), 1 / 3: rational(1, 3), math.pi: pi, 2 / math.pi: 2 / pi}
    meant |= {
        math.sqrt(2): sympy.sqrt(2),
        math.log(2): sympy.log(2),
        -math.pi / 6: -pi / 6,
        1 + 1e-9: 1 + rational(1, 10**9),
    }
    for value, number in meant.items():
        assert constant(value) == number
    assert constant(0.1234567890123456) == sympy.Rational(0.1234567890123456)


@pytest.mark.parametrize(
    "sides",
    [
        lambda x: (jnp.abs(x), jnp.sqrt(x**2)),
        lambda x: (jnp.maximum(x, 0) - jnp.maximum(-x, 0), x),
        lambda x: (jax.nn.softplus(x) - jax.nn.softplus(-x), x),
        lambda x: (jax.nn.log_sigmoid(x), jnp.log(jax.nn.sigmoid(x))),
        lambda x: (jnp.where(x > 1, x, 1.0), jnp.clip(x, 1.0, jnp.inf)),
        lambda x: (jnp.tanh(x), 2 * jax.nn.sigmoid(2 * x) - 1),
        lambda x: (jnp.cos(jnp.arctan(x)), 1 / jnp.sqrt(1 + x * x)),
        lambda x: (jnp.sum(jnp.arange(4.0) * x), 6 * x),
        lambda x: (jax.lax.scan(lambda c, k: (c * k, c), x, jnp.arange(1.0, 4.0))[0], 6 * x),
        lambda x: (jnp.linalg.norm(jnp.stack([3 * x, 4 * x])), 5 * jnp.abs(x)),
    ],
)
def test_the_algebra_of_what_jax_offers(sides):
    assert prove(sides, x=1.0).proven


@pytest.mark.parametrize(
    "sides",
    [
        lambda x: (jnp.abs(x), x),
        lambda x: (jnp.maximum(x, 0), x),
        lambda x: (jnp.sqrt(x**2), x),
        lambda x: (jnp.exp(x), jnp.expm1(x)),
        lambda x: (jnp.arctan(jnp.tan(x)), x),
        lambda x: (jnp.where(x > 3.9, x + 1e-6, x), x),
    ],
)
def test_what_is_false_somewhere_is_never_proven(sides):
    assert not prove(sides, x=1.0, points=1).proven


def test_what_is_true_but_beyond_it_is_undecided():
    proof = prove(lambda x: (jax.lax.lgamma(x), jax.lax.lgamma(x)), x=1.0)
    assert proof.verdict == "undecided" and "lgamma" in proof.reason


def test_numbers_that_vanish_everywhere_tried_are_no_proof():
    proof = prove(lambda x: (jax.scipy.special.erf(-x), -jax.scipy.special.erf(x + 1e-16 * x)), x=1.0)
    assert proof.verdict == "undecided" and not proof.proven


def test_contradictory_hypotheses_prove_nothing():
    proof = prove(lambda x: (x, 2 * x), where=lambda x: (x, -x), x=1.0)
    assert proof.verdict == "undecided"


def test_a_time_limit_is_a_verdict():
    proof = prove(lambda x: (jnp.sin(211 * x), jnp.sin(210 * x + x)), x=1.0, seconds=0.001)
    assert proof.verdict == "undecided"


def test_bad_input():
    with pytest.raises(ValueError, match="assuming must be one of"):
        Opaque("variance")
    with pytest.raises(ValueError, match="differ in shape"):
        prove(lambda x: (x, jnp.stack([x, x])), x=1.0)
    with pytest.raises(ValueError, match="differ in structure"):
        prove(lambda x: (x, (x, x)), x=1.0)
    with pytest.raises(TypeError, match="sigma is opaque"):
        Opaque()(0.5)


def test_without_sympy_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(ImportError, match=r"pip install 'diffeq-gen\[prove\]'"):
        prove(lambda x: (x, x), x=1.0)
