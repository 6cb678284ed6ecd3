"""A run: interrupted and resumed it ends bitwise where it would have; damage and mismatches are named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import samplers
from diffeq_gen.training import Config, batches, evaluate, fit, restore, update
from diffeq_gen.training.checkpoint import _numbers
from diffeq_gen.training.evaluation import draw, nearest, sliced_wasserstein
from diffeq_gen.training.step import asked

SMALL = Config(net="mlp", channels=(8,), steps=6, batch=16)


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    """float32: training is what users run, not what proofs run."""
    with jax.enable_x64(False):
        yield


def leaves(state):
    return jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(SMALL, folder, log_every=2)


def test_interrupted_and_resumed_is_bitwise_uninterrupted(whole, tmp_path):
    _, uninterrupted = whole
    fit(SMALL, tmp_path, log_every=2, stop_at=3)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 0.0, "gradient_norm": 0.0}\n')
    resumed = fit(SMALL, tmp_path, log_every=2, resume=True)
    for one, other in zip(leaves(uninterrupted.state), leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6] and all(line["loss"] > 0 for line in lines)


def test_learnt_times_are_resumed_bitwise_too(tmp_path):
    """With 16 losses a step enough is seen of 64 bins after 65 or so: times are learnt ones before and after the interruption."""
    config = dataclasses.replace(SMALL, times="learnt", steps=80)
    uninterrupted = fit(config, tmp_path / "whole", log_every=40)
    fit(config, tmp_path / "parts", log_every=40, stop_at=70)
    resumed = fit(config, tmp_path / "parts", log_every=40, resume=True)
    assert float(asked(restore(tmp_path / "parts").state.seen).relative().max()) > 1.5
    for one, other in zip(leaves(uninterrupted.state), leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)
    counts = 16 * sum(np.exp(-16 / 16384 * i) for i in range(80))
    np.testing.assert_allclose(uninterrupted.state.seen.counts.sum(), counts, rtol=1e-5)
    with pytest.raises(ValueError, match="holds a run with times='learnt', this one has times='uniform'"):
        fit(dataclasses.replace(config, times="uniform"), tmp_path / "parts", resume=True)


def test_a_run_of_before_times_were_a_choice_is_one_of_uniform_times(whole, tmp_path):
    """Its config.json does not name them, and its checkpoints are those of today."""
    _, run = whole
    fit(SMALL, tmp_path, stop_at=3)
    old = json.loads((tmp_path / "config.json").read_text())
    assert old.pop("times") == "uniform"
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert restore(tmp_path).config == SMALL and "seen" not in _numbers(run.state)
    with pytest.raises(ValueError, match="holds a run with times='uniform', this one has times='learnt'"):
        fit(dataclasses.replace(SMALL, times="learnt"), tmp_path, resume=True)
    resumed = fit(SMALL, tmp_path, resume=True)
    for one, other in zip(leaves(run.state), leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_sees_its_pictures_dequantised_by_a_key_of_its_own(tmp_path):
    """On levels alone a model would learn a comb, and its ELBO on dequantised pictures be worse than a uniform law's."""
    run = fit(SMALL, tmp_path, stop_at=1)
    batch = next(batches(run.dataset.train, SMALL.batch, seed=SMALL.seed))
    x0 = run.dataset.dequantised(SMALL.dequantisation(0), batch)
    by_hand, _ = jax.jit(update(SMALL.objective(), SMALL.optimizer(), decay=SMALL.decay))(SMALL.start((8, 8, 1)), x0)
    for one, other in zip(leaves(run.state), leaves(by_hand), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)
    inside = np.mod((np.asarray(x0) + 1) / run.dataset.bin_width, 1)
    assert abs(inside.mean() - 0.5) < 5 / np.sqrt(12 * inside.size) and inside.std() > 0.2
    keys = [jax.random.key_data(SMALL.dequantisation(step)).tolist() for step in range(3)]
    assert len({tuple(key) for key in keys}) == 3


def test_a_run_is_restored_as_it_was(whole):
    folder, run = whole
    found = restore(folder)
    assert found.config == run.config
    for one, other in zip(leaves(found.state), leaves(run.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_learns_something(tmp_path):
    config = dataclasses.replace(SMALL, channels=(32,), steps=120, batch=64, learning_rate=5e-3)
    seen = []
    fit(config, tmp_path, log_every=20, report=lambda step, metrics: seen.append(metrics["loss"]))
    assert seen[-1] < 0.85 * seen[0]


def test_any_schedule_can_sample_a_network_and_shapes_are_kept(whole):
    _, run = whole
    for make in (samplers.ddim, samplers.ddpm, samplers.heun, samplers.edm):
        x = draw(
            jax.random.key(0), run.denoise, run.schedule, (3, 8, 8, 1), steps=4, sampler=make(run.denoise, run.schedule)
        )
        assert x.shape == (3, 8, 8, 1) and x.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(x)))
    assert run.denoise(jnp.zeros((8, 8, 1)), jnp.float32(0.5)).shape == (8, 8, 1)


def test_evaluation_names_its_numbers(whole):
    _, run = whole
    scores = evaluate(jax.random.key(0), run, images=2, samples=16, steps=3, ode_steps=1, draws=64, gaps=1)
    assert scores["flow_gaps"] == 1 and scores["flow_gap_left_draws"] > 0 == scores["flow_gap_left_error"]
    assert scores["step"] == 6 and scores["dimensions"] == 64 and scores["images"] == 2
    assert 0 < scores["sw_floor"] < scores["sw"] and all(np.isfinite(value) for value in scores.values())
    assert all(1 < scores[f"bits_per_dim_{name}"] < 10 for name in ("ode", "elbo", "immse")) and scores["draws"] == 64
    for name in ("ode", "elbo"):
        difference = scores[f"bits_per_dim_{name}"] - scores["bits_per_dim_immse"]
        assert np.isclose(scores[f"{name}_minus_immse"], difference, rtol=1e-9)
    with pytest.raises(ValueError, match="draws must be a positive multiple of 32, got draws=48"):
        evaluate(jax.random.key(0), run, images=1, draws=48)
    with pytest.raises(ValueError, match=r"gaps must lie in \[0, 1\], got gaps=2"):
        evaluate(jax.random.key(0), run, images=1, gaps=2)


def test_a_folder_of_another_run_is_refused(whole):
    folder, _ = whole
    with pytest.raises(ValueError, match="holds a run with steps=6, this one has steps=7"):
        fit(dataclasses.replace(SMALL, steps=7), folder)
    with pytest.raises(ValueError, match="holds a run at step 6: resume it, or choose another folder"):
        fit(SMALL, folder)


def test_damage_is_named(tmp_path):
    fit(dataclasses.replace(SMALL, steps=1), tmp_path)
    state = next(tmp_path.rglob("_METADATA"))
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged: "):
        restore(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        restore(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run in"):
        restore(tmp_path / "nothing")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="by step"):
        fit(dataclasses.replace(SMALL, learning_rate=1e30, clip=1e30, steps=40), tmp_path, log_every=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "no schedule is named 'cosin'; did you mean 'cosine'"),
        ({"prediction": "velocty"}, "did you mean 'velocity'"),
        ({"weight": "elb"}, "did you mean 'elbo'"),
        ({"net": "unit"}, "did you mean 'unet'"),
        ({"times": "learned"}, "no times is named 'learned'; did you mean 'learnt'"),
        ({"steps": 0}, "steps must be positive, got steps=0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got learning_rate=-1.0"),
        ({"decay": 1.0}, "decay must lie in"),
    ],
)
def test_configurations_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_distances_on_what_is_known():
    x = np.random.default_rng(0).standard_normal((400, 5))
    assert sliced_wasserstein(x, x[::-1]) < 1e-12
    assert np.isclose(
        sliced_wasserstein(x, x + np.array([2.0, 0, 0, 0, 0]), directions=4000), 2 / np.sqrt(5), rtol=0.03
    )
    assert np.allclose(nearest(x[:3] + 0.01, x), 0.01)
