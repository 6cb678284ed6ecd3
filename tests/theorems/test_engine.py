"""The engine must be able to say no: planted falsehoods are refuted, shrunk and printed; empty proofs are called vacuous."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import schedules as families
from diffeq_gen.schedules import at
from diffeq_gen.theorems import engine, registry
from diffeq_gen.theorems.domains import (
    Arbitrary,
    draw,
    earlier,
    example,
    log_snrs,
    positive,
    scalars,
    schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.registry import theorem


@pytest.fixture
def blank(monkeypatch):
    """An empty registry, so that a planted theorem is gone after the test."""
    monkeypatch.setattr(registry, "_REGISTRY", {})


def plant(claim, miss=None, **options):
    domains = options.pop("domains", {"x": scalars("x", -1.0, 1.0), "y": scalars("y", -1.0, 1.0)})
    entry = theorem(source="planted", **options, **domains)(claim)
    entry.near_miss(miss or (lambda x, y: (x + y, x)))
    return entry


def test_a_true_identity_holds_and_says_by_how_much(blank):
    def binomial(x, y):
        """(x + y)^2 = x^2 + 2 x y + y^2."""
        return (x + y) ** 2, x**2 + 2 * x * y + y**2

    verdict = plant(binomial).check()
    assert verdict and verdict.cases == 1000 and verdict.near_misses == 1
    assert 0 < verdict.residual_over_bound["float64"] < 1 and 0 < verdict.residual_over_bound["float32"] < 1


def test_a_quick_check_sees_the_same_and_compiles_orders_alone(blank, monkeypatch):
    asked = []
    compiled = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, options=None: (asked.append(options), compiled(self, options))[1]
    )

    def difference_of_squares(x, y):
        return (x + y) * (x - y), x**2 - y**2

    def mistaken(x, y):
        return x + y, x - y

    entry = plant(difference_of_squares)
    quick, whole = entry.check(quick=True), entry.check()
    assert quick and whole and quick.cases == whole.cases == 1000
    assert asked == [None, None]
    assert not plant(mistaken).check(quick=True)
    asked.clear()

    def first_order(x, y):
        steps = 2.0 ** -jnp.arange(4.0, 10.0)
        return steps, (2 + x) * steps

    miss = lambda x, y: first_order(x, y)  # noqa: E731
    plant(first_order, miss, kind="order", order=1, precisions=("float64",)).check(quick=True, cases=4)
    assert asked == [engine.UNOPTIMISED] * 2


def test_time_that_is_up_while_a_case_is_replayed_does_not_lose_the_case():
    """Hypothesis asks twice; a slow claim may be broken in time and asked again too late."""

    def broken(case):
        time.sleep(0.05)
        return True

    found = engine.shrink(broken, {"x": vectors(2)}, seconds=0.04)
    assert found["x"].shape == (2,)


@pytest.mark.parametrize("factor", [2.0, 1 + 1e-6, 1 + 1e-12])
def test_a_factor_is_seen_however_small(blank, factor):
    def claim(x, y):
        """A planted factor."""
        return factor * jnp.exp(x), jnp.exp(x)

    verdict = plant(claim).check(precisions=("float64",))
    assert not verdict and "exceeds its bound" in verdict.reason


def test_a_counterexample_is_shrunk_and_can_be_pasted_back(blank):
    def wrong(x, y):
        """x = |x|."""
        return x, jnp.abs(x)

    verdict = plant(wrong).check()
    assert not verdict and verdict.counterexample["x"] < 0
    line = next(line for line in verdict.reason.splitlines() if line.strip().startswith("at "))
    case = eval(f"dict({line.strip()[3:]})", {"array": np.array})
    left, right = wrong(**case)
    assert left != right and case["y"] in (-1.0, 0.0, 1.0)
    assert pasted(verdict).ratio > 1


def pasted(verdict):
    """What the last lines of a refutation evaluate to when they are pasted into an interpreter."""
    *lines, last = verdict.reason.split("paste:\n")[1].splitlines()
    names: dict = {}
    exec("\n".join(line.strip() for line in lines), names)
    return eval(last.strip(), names)


def twisted(t):
    """No schedule: alpha and sigma exchanged."""
    return t, 1 - t


@pytest.mark.parametrize("fixed", [{}, {"schedule": families.VP()}, {"schedule": twisted}])
def test_a_counterexample_with_a_schedule_is_pasted_whole(blank, fixed):
    def wrong(schedule, t, x):
        """alpha = 2 alpha."""
        return schedule(t)[0] + 0 * x[0], 2 * schedule(t)[0]

    verdict = plant(
        wrong, lambda schedule, t, x: (t, t + 1), domains={"schedule": schedules, "t": times, "x": vectors(2)}
    )
    verdict = verdict.check(precisions=("float32",), **fixed)
    again = pasted(verdict)
    assert again.ratio > 1 and "dtype='float32'" in verdict.reason
    assert np.isclose(again.residual, float(verdict.reason.split("residual ")[1].split()[0]), rtol=0.01)


def test_products_are_measured_in_the_precision_that_is_named(blank):
    """An accelerator's short product would be a counterexample to half of linear algebra, and none to the mathematics."""
    seen = []

    def squares(x, y):
        seen.append(jax.config.jax_default_matmul_precision)
        return x * x, x**2

    plant(squares).check(cases=2)
    assert set(seen) == {"highest"} and jax.config.jax_default_matmul_precision is None


def test_nan_is_a_refutation(blank):
    def claim(x, y):
        """log x exists."""
        return jnp.log(x), jnp.log(x)

    assert not plant(claim).check()


def test_a_bound_that_decides_nothing_is_no_proof(blank):
    def claim(x, y):
        """Everything is lost in a cancellation: nothing is shown."""
        huge = 1e20 * (2 + x)
        return (huge + y) - huge, y

    verdict = plant(claim).check(precisions=("float64",))
    assert not verdict and "vacuous" in verdict.reason


@pytest.mark.parametrize("kind", ["identity", "inequality"])
def test_an_entry_that_no_case_decides_is_not_hidden_by_its_neighbours(blank, kind):
    def claim(x, y):
        """One entry holds; the other is said of a number that, for all that rounding leaves of it, may be infinite."""
        nothing = jnp.exp(x) * jnp.exp(y) - jnp.exp(x + y)
        return jnp.stack([x, 1 / (jnp.where(nothing > 0, 1.0, 2.0) - 1.5)]), jnp.stack([x, 0 * x + 7])

    held = plant(lambda x, y: (x, x), lambda x, y: (x + 1, x), kind=kind).check()
    apart = {name: scalars(name, 0.25, 1.0) for name in "xy"}
    verdict = plant(claim, kind=kind, domains=apart).check(cases=100)
    assert held and not verdict and "vacuous, 1 of its entries are decided in no case in float64" in verdict.reason


def test_a_near_miss_that_is_true_is_reported(blank):
    def claim(x, y):
        """x + y = y + x."""
        return x + y, y + x

    verdict = plant(claim, miss=lambda x, y: (x, x)).check()
    assert not verdict and "is not refuted" in verdict.reason


def test_a_witness_must_be_a_variable(blank):
    def claim(x, y):
        """x = x."""
        return x, x

    with pytest.raises(ValueError, match="has no variable 'z' for a witness; it has x, y"):
        plant(claim).near_miss(witness={"z": 1.0})(lambda x, y: (x, y))


def test_inequalities_are_one_sided(blank):
    def true(x, y):
        """x y <= (x^2 + y^2)/2, with equality at x = y."""
        return x * y, (x**2 + y**2) / 2

    assert plant(true, kind="inequality", miss=lambda x, y: ((x**2 + y**2) / 2, x * y)).check()

    def false(x, y):
        """x <= y."""
        return x, y

    assert not plant(false, kind="inequality", miss=lambda x, y: (x, x - 1)).check()


def test_orders_are_slopes_and_the_next_order_is_refuted(blank):
    def errors(power):
        steps = 2.0 ** -jnp.arange(4.0, 10.0)
        return lambda x, y: (steps + 0 * x, (2 + x) * steps**power * (1 + steps))

    def euler(x, y):
        """Order one."""
        return errors(1)(x, y)

    assert plant(euler, errors(2), kind="order", order=1).check(cases=4)

    def heun(x, y):
        """Order one, said to be two."""
        return errors(1)(x, y)

    assert not plant(heun, errors(3), kind="order", order=2).check(cases=4)


def test_another_order_is_read_off_the_same_errors_at_the_witness_alone(blank):
    steps, traced = 2.0 ** -jnp.arange(4.0, 10.0), []

    def claim(x, y):
        """Order one, or two where y is one."""
        traced.append(1)
        return steps + 0 * x, (2 + x) * steps ** (1 + y)

    domains = {"x": scalars("x", -1.0, 1.0), "y": scalars("y", 0.0, 0.0)}
    entry = theorem(source="planted", kind="order", order=1, precisions=("float64",), **domains)(claim)
    entry.not_of_order(2, "One order too many.")
    assert entry.check(cases=4) and len(traced) == 1
    entry.not_of_order(2, "True at this witness.", witness={"y": np.float64(1.0)})
    verdict = entry.check(cases=4)
    assert not verdict and verdict.reason.endswith("the near miss of-order-2 is not refuted")


def test_truncation_widens_the_bound_by_what_it_says(blank):
    def claim(x, y):
        """exp x by six terms, with the seventh as the truncation."""
        return (
            sum(x**k / float(np.prod(range(1, k + 1)) or 1) for k in range(7)),
            jnp.exp(x),
            jnp.abs(x) ** 7 / 5040 * 3,
        )

    assert plant(claim).check(precisions=("float64",))


def test_registration_refuses_what_it_cannot_run(blank):
    def claim(x):
        """x = x."""
        return x, x

    domain = scalars("x", 0, 1)
    with pytest.raises(ValueError, match="has the variables x but domains for y"):
        theorem(source="", y=domain)(claim)
    with pytest.raises(ValueError, match="kind must be one of"):
        theorem(source="", kind="belief", x=domain)(claim)
    theorem(source="", x=domain)(claim)
    with pytest.raises(ValueError, match="exists already"):
        theorem(source="", x=domain)(claim)
    with pytest.raises(KeyError, match="did you mean 'claim'"):
        registry.get("clam")
    with pytest.raises(ValueError, match="has no variable 'schedule'"):
        registry.get("claim").check(schedule=families.Flow())


def test_about_hands_out_only_what_must_hold(blank):
    from diffeq_gen.theorems.domains import vp_schedules

    def any_one(schedule):
        """Any."""
        return 1.0, 1.0

    def vp_one(schedule):
        """Only variance preserving."""
        return 1.0, 1.0

    theorem(source="", schedule=schedules)(any_one)
    theorem(source="", schedule=vp_schedules)(vp_one)
    assert [entry.name for entry in registry.about("schedule")] == ["any-one"]
    assert len(registry.about("schedule", assuming="variance-preserving")) == 2
    with pytest.raises(ValueError, match="theorems are about schedule; got 'sampler'"):
        registry.about("sampler")


def test_domains_reach_their_corners():
    case = draw(
        {"t": times, "s": earlier("t"), "value": log_snrs, "x": vectors(2), "scale": positive("k", 0.1, 10.0)}, 4000, 0
    )
    assert case["t"].min() == 1e-6 and case["t"].max() == 1 - 1e-6 and np.all(case["s"] < case["t"])
    assert (case["value"].min(), case["value"].max()) == (-40.0, 40.0)
    assert (case["t"] - case["s"]).min() < 1e-9 and (case["s"] / case["t"]).min() <= 1e-6
    assert np.any(np.all(case["x"] == 0, axis=1)) or np.any(case["x"] == 0)


def test_the_example_is_nowhere_degenerate():
    case = example({"schedule": schedules, "t": times, "s": earlier("t"), "x": vectors(3)})
    assert 0.02 < case["s"][0] < case["t"][0] < 0.95 and len({*case["x"][0]}) == 3 and np.all(case["x"] != 0)


def test_the_random_schedule_is_a_schedule_up_to_forty():
    build = draw({"schedule": schedules}, 500, 1)["schedule"]
    grid = jnp.linspace(0.001, 0.999, 64)
    with jax.enable_x64(True):
        points = jax.vmap(lambda schedule: jax.vmap(lambda t: at(schedule, t))(grid))(build)
        assert isinstance(build, Arbitrary) and bool(jnp.all(points.log_snr_dot < 0))
        assert (
            bool(jnp.all(points.alpha > 0) & jnp.all(points.sigma > 0)) and float(jnp.max(jnp.abs(points.log_snr))) > 30
        )


def test_describe_prints_pasteable_values():
    text = engine.describe({"t": np.float64(0.5), "x": np.array([0.0, 1.0]), "schedule": families.VP(0.1, 20.0)})
    assert text == "t=0.5, x=array([0.0, 1.0]), schedule=VP(beta_min=0.1, beta_max=20.0)"
