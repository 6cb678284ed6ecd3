"""Runge-Kutta methods: where their stages lie, how they begin and end, their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.coordinates import ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT
from diffeq_gen.samplers import ddim, edm, euler, heun, runge_kutta, sample
from diffeq_gen.samplers.runge_kutta import EULER, HEUN, MIDPOINT, RALSTON, RK4, Tableau
from diffeq_gen.schedules import VP, Cosine, Flow, at

KEY = jax.random.key(0)
WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
Z = np.array([0.7, -1.2], np.float32)
COORDINATES = {"t": None, "noise": NOISE, "straight": STRAIGHT, "data": DATA, "angle": ANGLE, "log-SNR": LOG_SNR}
TABLEAUS = {"heun": HEUN, "midpoint": MIDPOINT, "ralston": RALSTON, "rk4": RK4}


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


def step(sampler, t, s, z=Z):
    return sampler.step(None, (), jnp.asarray(z), jnp.asarray(t), jnp.asarray(s))[0]


def test_a_stage_at_the_end_of_a_step_is_asked_at_its_very_time():
    """Not at what the inverse clock makes of it, by a bisection that only the two stages inside the step cost."""
    asked = []
    sampler = runge_kutta(
        lambda z, t: (asked.append(t), 0.5 * z)[1], lambda t: Cosine()(t), tableau=RK4, coordinate=STRAIGHT
    )
    jaxpr = jax.make_jaxpr(lambda z, t, s: sampler.step(None, (), z, t, s)[0])(Z, 0.8, 0.3)
    assert len(asked) == 4 and str(jaxpr).count("while[") + str(jaxpr).count("scan[") == 2
    asked.clear()
    for t, s in ((0.8, 0.3), (0.9, 0.123), (0.55, 0.37)):
        step(sampler, t, s)
    np.testing.assert_array_equal(asked[3::4], jnp.asarray([0.3, 0.123, 0.37]))


@pytest.mark.parametrize("name", COORDINATES)
@pytest.mark.parametrize(("tableau", "shares"), [(RALSTON, [2 / 3]), (RK4, [0.5, 0.5, 1.0])], ids=["ralston", "rk4"])
def test_the_stages_lie_where_they_are_said_to_lie(name, tableau, shares):
    asked, schedule, coordinate = [], Cosine(), COORDINATES[name]

    def denoise(z, t):
        asked.append(float(t if coordinate is None else coordinate.clock(*schedule(t))))
        return 0.5 * z

    step(runge_kutta(denoise, schedule, tableau=tableau, coordinate=coordinate), 0.8, 0.3)
    first, last = (float(t if coordinate is None else coordinate.clock(*schedule(t))) for t in (0.8, 0.3))
    np.testing.assert_allclose(asked, [first, *(first + share * (last - first) for share in shares)], rtol=1e-5)


@pytest.mark.parametrize("name", COORDINATES)
@pytest.mark.parametrize("schedule", [Cosine(), VP()], ids=str)
def test_from_pure_noise_and_to_pure_data_a_step_is_finite_and_so_is_its_slope(name, schedule):
    denoise, z = exact.denoiser(WORLD, schedule), jnp.asarray(Z)
    for tableau in (RALSTON, RK4) if schedule == Cosine() else (HEUN,):
        sampler = runge_kutta(denoise, schedule, tableau=tableau, coordinate=COORDINATES[name])
        for t, s in ((1.0, 0.5), (0.5, 0.0)):
            moved, slope = step(sampler, t, s), jax.jacrev(lambda z, t=t, s=s, one=sampler: step(one, t, s, z))(z)
            assert moved.shape == z.shape and moved.dtype == z.dtype
            assert bool(jnp.all(jnp.isfinite(moved))) and bool(jnp.all(jnp.isfinite(slope)))


@pytest.mark.parametrize(
    ("name", "tableau", "t", "s", "falls_back"),
    [
        ("noise", "rk4", 1.0, 0.5, True),
        ("noise", "heun", 0.5, 0.0, True),
        ("noise", "midpoint", 0.5, 0.0, False),
        ("straight", "rk4", 1.0, 0.5, False),
        ("straight", "rk4", 0.5, 0.0, True),
        ("straight", "ralston", 1.0, 0.0, False),
        ("data", "midpoint", 1.0, 0.5, False),
        ("data", "midpoint", 0.5, 0.0, True),
        ("angle", "heun", 1.0, 0.5, False),
        ("angle", "midpoint", 0.5, 0.0, False),
        ("log-SNR", "midpoint", 1.0, 0.5, True),
        ("log-SNR", "midpoint", 0.5, 0.0, True),
        ("t", "rk4", 0.5, 0.0, True),
        ("t", "midpoint", 0.5, 0.0, False),
    ],
)
def test_it_is_ddim_where_the_coordinate_has_no_value_or_the_slope_none(name, tableau, t, s, falls_back):
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    one = step(runge_kutta(denoise, schedule, tableau=TABLEAUS[tableau], coordinate=COORDINATES[name]), t, s)
    same = np.array_equal(one, step(ddim(denoise, schedule), t, s))
    assert same == falls_back


def test_the_straight_flow_of_a_point_is_exact_in_one_step_between_the_ends():
    x0 = jnp.array([1.5, -0.25])
    for name in ("noise", "straight", "angle", "data"):
        sampler = runge_kutta(lambda z, t: x0, Flow(), tableau=MIDPOINT, coordinate=COORDINATES[name])
        eps = (Z - 0.2 * x0) / 0.8
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if name != "angle" else {"atol": 0.2}
        np.testing.assert_allclose(step(sampler, 0.8, 0.3), 0.7 * x0 + 0.3 * eps, **tolerance)


@pytest.mark.parametrize("name", ["t", "straight"])
def test_halving_the_step_gains_the_order(name):
    with jax.enable_x64(True):
        world, schedule = exact.Gaussian(jnp.array([1.5, -0.25]), jnp.array([[0.5, 0.2], [0.2, 0.3]])), Cosine()
        z = jnp.asarray(Z, float)
        known = exact.flow_map(world, z, *(at(schedule, jnp.asarray(end)) for end in (0.9, 0.2)))
        sampler = runge_kutta(exact.denoiser(world, schedule), schedule, coordinate=COORDINATES[name])
        grids = [clocks.uniform(n, first=0.9, last=0.2) for n in (60, 120)]
        errors = [float(jnp.linalg.norm(sample(KEY, sampler, z, grid) - known)) for grid in grids]
        assert abs(np.log2(errors[0] / errors[1]) - 4) < 0.2


def test_the_named_methods_keep_their_names():
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    for known, tableau, coordinate in ((euler, EULER, None), (heun, HEUN, None), (edm, HEUN, NOISE)):
        one = step(runge_kutta(denoise, schedule, tableau=tableau, coordinate=coordinate), 0.8, 0.3)
        np.testing.assert_allclose(one, step(known(denoise, schedule), 0.8, 0.3), rtol=1e-5)


def test_one_trace_for_any_number_of_calls_and_batches_by_vmap():
    traced = []

    def denoise(z, t):
        traced.append(t)
        return 0.5 * z

    sampler = runge_kutta(denoise, Cosine(), coordinate=STRAIGHT)
    runs = [sample(KEY, sampler, jnp.full(2, float(seed)), clocks.uniform(20)) for seed in range(3)]
    assert len(traced) == 4
    free = runge_kutta(lambda z, t: 0.5 * z, Cosine(), coordinate=STRAIGHT)
    batch = jax.vmap(lambda z: sample(KEY, free, z, clocks.uniform(20)))(jnp.full((3, 2), jnp.arange(3.0)[:, None]))
    np.testing.assert_allclose(batch, jnp.stack(runs), rtol=1e-6)


@pytest.mark.parametrize(
    ("tableau", "said"),
    [
        (Tableau(((1.0,),), (1.0,)), r"row i of a tableau must hold i numbers, .* got rows=\(1,\), weights=1"),
        (Tableau(((0.5, 0.5),), (0.5, 0.5)), r"row i of a tableau must hold i numbers"),
        (Tableau(((0.5,),), (0.5, 0.6)), "the weights of a tableau must sum to one, got total=1.1"),
        (Tableau(((0.5,),), (0.5, 0.5 + 1.0000005e-6)), "the weights of a tableau must sum to one"),
        (Tableau(((0.5,),), (0.5, 0.5 - 1.5e-6)), "the weights of a tableau must sum to one"),
        (Tableau(((1.5,),), (0.5, 0.5)), r"the nodes of a tableau must lie in \(0, 1\], got nodes=\[1.5\]"),
        (Tableau(((0.0,),), (0.5, 0.5)), r"the nodes of a tableau must lie in \(0, 1\], got nodes=\[0.0\]"),
    ],
)
def test_bad_input_is_named(tableau, said):
    with pytest.raises(ValueError, match=said):
        runge_kutta(None, Flow(), tableau=tableau)


@pytest.mark.parametrize("rest", [-5e-7, 9.99999e-7])
def test_weights_written_to_six_digits_are_taken(rest):
    runge_kutta(None, Flow(), tableau=Tableau(((0.5,),), (0.5, 0.5 + rest)))
