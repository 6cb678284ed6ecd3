"""The laws of a sampler refute a wrong one, each fault by the law that it breaks, at a case that can be read."""

import jax.numpy as jnp
import pytest

from diffeq_gen import samplers
from diffeq_gen.equations import probability_flow, reverse_sde
from diffeq_gen.schedules import Cosine, Flow, at
from diffeq_gen.theorems import about, all_theorems, get, registry
from diffeq_gen.theorems.sampler_contract import Configured, _at_best
from diffeq_gen.theorems.suite import ASSUMPTIONS, run, select

OWED = (
    "one-step-keeps-the-marginals",
    "a-run-tends-to-the-marginals",
    "rows-do-not-mix",
    "a-step-is-affine-where-its-denoiser-is",
)
CLAIMED = {
    "exact-for-a-point": "a-point-keeps-its-law",
    "scale-invariant": "a-straight-twin-has-the-same-states",
    "order-2": "a-run-is-of-second-order",
    "order-3": "a-run-is-of-third-order",
    "order-4": "a-run-is-of-fourth-order",
}
ONE_STEP, RUN, ROWS, AFFINE = OWED
POINT, TWIN, SECOND, THIRD, FOURTH = CLAIMED.values()


@pytest.fixture(autouse=True)
def unshrunk(monkeypatch):
    """The first case that refutes is enough here: looking for a simpler one takes up to ten seconds."""
    monkeypatch.setattr(registry, "shrink", lambda broken, domains: None)


def verdict(name, method, **fixed):
    return get(name).check(sampler=method, cases=6, quick=True, precisions=("float64",), **fixed)


def test_what_a_sampler_owes_and_what_it_may_claim():
    assert {entry.name for entry in about("sampler")} == set(OWED)
    for claim, name in CLAIMED.items():
        assert {entry.name for entry in about("sampler", assuming=claim)} == {*OWED, name}
    for target, known in ASSUMPTIONS.items():
        declared = {name for entry in all_theorems().values() if target in entry.targets for name in entry.assumes}
        assert declared == set(known)
    assert not {entry.name for entry in about("schedule")} & {*OWED, *CLAIMED.values()}


def backwards(denoise, schedule, z, t, s):
    return z - (s - t) * probability_flow(denoise, schedule)(z, t)


def louder(noise, denoise, schedule, z, t, s):
    drift, diffusion = reverse_sde(denoise, schedule)
    return z + (s - t) * drift(z, t) + diffusion(t) * jnp.sqrt(2 * (t - s)) * noise[0]


def silent(noise, denoise, schedule, z, t, s):
    return z + (s - t) * reverse_sde(denoise, schedule)[0](z, t) + 0 * noise[0]


def alpha_of_t(denoise, schedule, z, t, s):
    p, q, x0 = at(schedule, t), at(schedule, s), denoise(z, t)
    return p.alpha * x0 + q.sigma * (z - p.alpha * x0) / p.sigma


def stale_heun(denoise, schedule, z, t, s):
    x0 = denoise(z, t)
    flow = probability_flow(lambda z, t: x0, schedule)
    slope = flow(z, t)
    return z + (s - t) * (slope + flow(z + (s - t) * slope, s)) / 2


def pooled(denoise, schedule, z, t, s):
    x0 = denoise(z, t)
    size = jnp.sqrt(jnp.mean(x0**2))
    return samplers.ddim(lambda z, t: x0 / jnp.maximum(size, 1), schedule).step(z[None][:0], (), z, t, s)[0]


def clipped(denoise, schedule, z, t, s):
    return samplers.ddim(lambda z, t: jnp.clip(denoise(z, t), -1, 1), schedule).step(z[None][:0], (), z, t, s)[0]


def another_shape(denoise, schedule, z, t, s):
    return denoise(z, t)[:1]


def forgetful(denoise, schedule):
    """A two-step method that forgets: what it remembers is always the first prediction."""
    made = samplers.multistep(denoise, schedule)

    def step(noise, past, z, t, s):
        moved, new = made.step(noise, past, z, t, s)
        return moved, new._replace(values=(jnp.where(past.alphas[0] > 0, past.values[0], new.values[0]),))

    return made._replace(step=step)


WRONG = {
    "drift sign flipped": (samplers.stateless(backwards), ONE_STEP, "its errors miss a slope of 2 by"),
    "noise sqrt(2) too large": (samplers.stateless(louder, noises=1), ONE_STEP, "its errors miss a slope of 2 by"),
    "noise left out": (samplers.stateless(silent, noises=1), ONE_STEP, "its errors miss a slope of 2 by"),
    "t's alpha for s's": (samplers.stateless(alpha_of_t), ONE_STEP, "its errors miss a slope of 2 by"),
    "t's alpha, at a point": (samplers.stateless(alpha_of_t), POINT, "residual"),
    "the second slope of the first prediction": (samplers.stateless(stale_heun), SECOND, "miss a slope of 2 by"),
    "a memory of the first step": (forgetful, RUN, "miss a slope of 1 by"),
    "a norm over the batch": (samplers.stateless(pooled), ROWS, "residual"),
    "clipped": (samplers.stateless(clipped), AFFINE, "residual"),
    "Euler as exact": (samplers.euler, POINT, "residual"),
    "Euler as free of scale": (samplers.euler, TWIN, "residual"),
    "an order that its first step has not": (
        lambda f, s: samplers.multistep(f, s, order=3),
        THIRD,
        "miss a slope of 3 by",
    ),
    "DPM-Solver-3 as of order four": (lambda f, s: samplers.singlestep(f, s, order=3), FOURTH, "miss a slope of 4 by"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_fault_is_refuted_by_the_law_that_it_breaks(name):
    method, law, told = WRONG[name]
    found = verdict(law, method)
    assert not found
    assert found.reason.startswith(f"{law}: ") and told in found.reason
    assert get(law).statement in found.reason and ("schedule=Arbitrary(" in found.reason or law == FOURTH)
    assert found.counterexample["sampler"] is method


def test_a_fault_of_one_law_is_none_of_the_others():
    assert all(verdict(name, samplers.stateless(stale_heun)) for name in (ONE_STEP, RUN))
    assert verdict(ONE_STEP, forgetful)


def two_s(denoise, schedule):
    return samplers.singlestep(denoise, schedule)


def third(denoise, schedule):
    return samplers.started(samplers.multistep(denoise, schedule, order=3), two_s(denoise, schedule), steps=2)


def fourth(denoise, schedule):
    begin = samplers.singlestep(denoise, schedule, order=3)
    return samplers.started(samplers.multistep(denoise, schedule, order=4), begin, steps=3)


RIGHT = [
    (samplers.multistep, (*OWED, POINT, TWIN, SECOND)),
    (third, (THIRD,)),
    (fourth, (FOURTH,)),
    (samplers.euler_maruyama, (ONE_STEP, RUN)),
    (samplers.edm, (ONE_STEP, SECOND)),
    (lambda f, s: samplers.churn(f, s, undone=0.3), (ONE_STEP, POINT)),
]


@pytest.mark.parametrize(("method", "laws"), RIGHT)
def test_other_samplers_of_ours_hold_too(method, laws):
    """Also those that are better than what is claimed: an order is at least that."""
    for name in laws:
        found = verdict(name, method)
        assert found, found.reason


def test_churn_that_does_not_shrink_with_the_step_is_no_method_of_the_limit():
    """Of Karras et al. s_churn is shared over the steps of a run: with that number fixed, a short step adds as much as a long one."""
    assert not verdict(ONE_STEP, lambda f, s: samplers.edm(f, s, steps=8, s_churn=2.0))


def of_the_flow(denoise, schedule, z, t, s):
    """Written for alpha = 1 - t, sigma = t, whatever the schedule."""
    return z + (s - t) * (z - denoise(z, t)) / t


def test_a_sampler_of_one_schedule_is_judged_on_that_one():
    method = samplers.stateless(of_the_flow)
    assert verdict(ONE_STEP, method, schedule=Flow()) and not verdict(ONE_STEP, method)
    assert select(sampler=method, schedule=Flow()) == about("sampler")
    found = list(run([get(RUN)], sampler=method, schedule=Flow(), cases=2, quick=True, processes=True))
    assert [bool(one) for one in found] == [True]


def test_a_step_that_cannot_be_run_is_refuted_and_not_passed_over():
    wrong = samplers.stateless(another_shape)
    (found,) = run([get(ONE_STEP)], sampler=wrong, cases=2, quick=True)
    assert not found and found.reason == f"{ONE_STEP}: ValueError: a step must keep the shape of z, got (1,) from (2,)"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"sampler": 3}, TypeError, "a method is"),
        (
            {"sampler": samplers.ddim, "assuming": ("variance-preserving",)},
            ValueError,
            "must be one of exact-for-a-point, sc",
        ),
        (
            {"schedule": Flow(), "assuming": ("order-2",)},
            ValueError,
            "must be one of variance-preserving, got 'order-2'",
        ),
        ({"names": [SECOND], "sampler": samplers.ddim}, ValueError, f"{SECOND} assumes order-2"),
        ({"names": ["ddim-update"], "sampler": samplers.ddim}, ValueError, "ddim-update is not about any sampler"),
        ({"names": [RUN], "schedule": Flow()}, ValueError, f"{RUN} is not about any schedule"),
        ({"sampler": samplers.ddim, "schedule": lambda t: (t, 1 - t)}, ValueError, "log-SNR must decrease"),
    ],
)
def test_what_cannot_be_asked_is_said(options, error, told):
    with pytest.raises(error, match=told):
        select(**options)


def test_a_configured_method_prints_as_it_is_built_and_is_found_again():
    method = Configured(samplers.ddim, (("eta", 0.75),))
    assert repr(method) == "Configured(build=ddim, options=(('eta', 0.75),))"
    assert method(lambda z, t: z, Cosine()).noises == 1
    case = {"sampler": method, "schedule": Flow(), "world": _world(), "z": jnp.ones(2)}
    assert get(RUN).measure_at(case).ratio <= 1


def _world():
    from diffeq_gen.exact import Gaussian

    return Gaussian(jnp.array([0.5, -1.0]), jnp.array([[1.0, 0.25], [0.25, 0.5]]))


def test_an_order_is_at_least_what_is_claimed():
    """Errors that fall faster are slowed to the order; those that fall slower keep their slope once eight times the first is past."""
    steps = jnp.array([1.0, 1 / 4, 1 / 16, 1 / 64])
    first, slowed = 8 + 1e-4, steps**2
    assert _at_best(2, steps, steps**3, 1.0)[1].tolist() == pytest.approx((first * slowed).tolist())
    assert _at_best(2, steps, steps, 1.0)[1].tolist() == pytest.approx([first, first / 16, 1 / 16, 1 / 64])
    assert _at_best(2, steps, 0 * steps, 3.0)[1].tolist() == pytest.approx((3e-4 * slowed).tolist())
