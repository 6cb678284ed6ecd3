"""Checkpoints: whole or not there, the newest few, and what is wrong with one is said in its own words."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from diffeq_gen.importance import Seen
from diffeq_gen.training.checkpoint import Checkpoints, _plain
from diffeq_gen.training.state import initial

CONFIG = {"steps": 3, "channels": [8]}


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


def state(step=0, width=40):
    params = {"layer": {"kernel": jnp.arange(float(width * 30)).reshape(width, 30), "bias": jnp.ones(width)}}
    start = initial(jax.random.key(5), params, optax.adam(1e-3))
    return start._replace(step=jnp.int32(step), ema=jax.tree.map(lambda leaf: leaf + step, start.ema))


def saved(folder, *steps, **options):
    with Checkpoints(folder, CONFIG, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state(step))
    return folder


def latest(folder, like=None):
    with Checkpoints(folder, CONFIG) as checkpoints:
        return checkpoints.latest(state() if like is None else like)


def test_what_was_saved_comes_back_with_its_key(tmp_path):
    found = latest(saved(tmp_path, 7))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state(7)), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.bits(one, (3,)), jax.random.bits(other, (3,))
        np.testing.assert_array_equal(one, other)


def test_what_was_seen_of_losses_comes_back_and_is_missed_where_it_is_not(tmp_path):
    """Bit for bit with its ends; a checkpoint without it is of another kind of run, and so is one with more bins."""
    seen = Seen.none(bins=5, ends=(0.1, 0.7)).noted(jnp.array([0.2, 0.6]), jnp.array([1.5, 2.5]))
    told, plain = state(3)._replace(seen=seen), tmp_path / "plain"
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(told)
    found = latest(tmp_path, told._replace(seen=Seen.none(bins=5, ends=(0.1, 0.7)))).seen
    assert found.ends == (0.1, 0.7)
    for name in ("counts", "sums", "squares"):
        np.testing.assert_array_equal(getattr(found, name), getattr(seen, name))
    for folder, like, message in (
        (saved(plain, 3), told, r"seen.counts has no shape there and \(5,\) here"),
        (tmp_path, state(), r"seen.counts has \(5,\) there and no shape here"),
        (tmp_path, told._replace(seen=Seen.none(bins=6)), r"seen.counts has \(5,\) there and \(6,\) here"),
    ):
        with pytest.raises(ValueError, match=message):
            latest(folder, like)


def test_a_run_of_before_a_name_was_part_of_it_is_read_with_its_default(tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path, {**CONFIG, "times": "uniform"}, defaults={"times": "uniform"}) as checkpoints:
        assert int(checkpoints.latest(state()).step) == 1
    with pytest.raises(ValueError, match="holds a run with times='uniform', this one has times='learnt'"):
        Checkpoints(tmp_path, {**CONFIG, "times": "learnt"}, defaults={"times": "uniform"})


def test_an_empty_folder_has_no_newest(tmp_path):
    assert latest(tmp_path / "deep" / "new") is None
    assert json.loads((tmp_path / "deep" / "new" / "config.json").read_text()) == CONFIG


def test_the_newest_two_stay(tmp_path):
    saved(tmp_path, 1, 2, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "config.json"]
    assert int(latest(tmp_path).step) == 5
    assert sorted(path.name for path in saved(tmp_path / "one", 1, 2, keep=1).iterdir()) == ["2", "config.json"]


def test_a_second_save_of_a_step_changes_nothing(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(state(4))
        checkpoints.save(state(4)._replace(key=jax.random.key(6)))
    assert bool(latest(tmp_path).key == state().key)


def test_a_save_that_was_interrupted_is_not_seen(tmp_path):
    """Orbax writes under a temporary name; what a killed process leaves there is no checkpoint."""
    saved(tmp_path, 1)
    (tmp_path / "9.orbax-checkpoint-tmp-1234567").mkdir()
    (tmp_path / "9.orbax-checkpoint-tmp-1234567" / "default").write_text("half")
    assert int(latest(tmp_path).step) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"steps": 4, "channels": [8]}, r"holds a run with steps=3, this one has steps=4"),
        ({"steps": 3, "channels": [9]}, r"holds a run with channels=\[8\], this one has channels=\[9\]"),
        ({"steps": 3}, r"holds a run with channels=\[8\], this one has channels=None"),
        ({**CONFIG, "clip": 1.0}, r"holds a run with clip=None, this one has clip=1.0"),
    ],
)
def test_a_run_of_another_configuration_is_named_by_what_differs(tmp_path, other, message):
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, other)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_another_network_is_named_by_its_parameter(tmp_path):
    saved(tmp_path, 1)
    deeper, shallower = state(), state()
    deeper.params["more"] = jnp.zeros(3)
    del shallower.params["layer"]["bias"]
    for other, message in (
        (state(width=50), r"of another network: params.layer.bias has \(40,\) there and \(50,\) here"),
        (deeper, r"of another network: params.more has no shape there and \(3,\) here"),
        (shallower, r"of another network: params.layer.bias has \(40,\) there and no shape here"),
    ):
        with pytest.raises(ValueError, match=message):
            latest(tmp_path, other)


def damaged(folder, chosen):
    """Cuts every file that `chosen` picks to half of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and chosen(path)]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_checkpoint_without_its_record_is_named(tmp_path):
    damaged(saved(tmp_path, 1), lambda path: path.name == "_METADATA")
    with pytest.raises(ValueError, match=r"checkpoint .*1 is damaged: \S"):
        latest(tmp_path)


def test_arrays_cut_short_are_named(tmp_path):
    """In a process of its own: the reads that orbax leaves behind complain whenever they are collected."""
    damaged(saved(tmp_path / "arrays", 1), lambda path: path.parent.name == "d")
    damaged(saved(tmp_path / "manifest", 1), lambda path: "manifest" in path.name)
    code = (
        "import sys, pathlib\n"
        "from tests.training.test_checkpoint import latest\n"
        "for name in ('arrays', 'manifest'):\n"
        "    try:\n"
        "        latest(pathlib.Path(sys.argv[1]) / name)\n"
        "    except ValueError as error:\n"
        "        sys.stdout.write(f'{error}\\n')\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    told = [line for line in run.stdout.splitlines() if line.startswith("checkpoint ")]
    assert run.returncode == 0 and len(told) == 2, run.stderr
    for name, line in zip(("arrays", "manifest"), told, strict=True):
        assert line.startswith(f"checkpoint {tmp_path / name / '1'} is damaged: ")


def test_a_configuration_cut_short_is_named(tmp_path):
    damaged(saved(tmp_path, 1), lambda path: path.name == "config.json")
    with pytest.raises(ValueError, match=r"config.json is damaged: "):
        latest(tmp_path)


def test_numbers_that_changed_on_disk_are_not_taken_for_those_saved(tmp_path):
    """One bit of one number: orbax reads it as it finds it, so that only the checksum can tell."""
    tree = _plain(state(1))
    bias = np.asarray(tree["params"]["layer"]["bias"]).copy()
    bias.view(np.uint32)[7] ^= 1
    tree["params"] = {"layer": {**tree["params"]["layer"], "bias": jnp.asarray(bias)}}
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.manager.save(1, args=ocp.args.StandardSave(tree))
    with pytest.raises(ValueError, match=r"checkpoint .*1 is damaged: its numbers are not those that were saved"):
        latest(tmp_path)
