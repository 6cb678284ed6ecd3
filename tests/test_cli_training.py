"""Train, sample, evaluate, plot from the command line: what they leave in a folder, and what bad input is told."""

import json

import jax
import numpy as np
import pytest

from diffeq_gen import cli, cli_training

TRAIN = ["--net", "mlp", "--channels", "8", "--steps", "3", "--batch", "16"]


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def folder(as_users_run_it, tmp_path_factory):
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", str(folder), *TRAIN]) == 0
    return folder


def sentence(capsys, *args):
    capsys.readouterr()
    assert cli.main([str(arg) for arg in args]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and told.err.startswith("diffeq-gen: ")
    return told.err


def test_a_run_leaves_numbers_and_pictures(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"3", "config.json", "metrics.jsonl", "loss.png", "samples.png"}
    steps, losses = cli_training.history(folder)
    assert steps == [3] and np.isfinite(losses[0])
    assert json.loads((folder / "config.json").read_text())["net"] == "mlp"
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("sampler", ["edm", "euler-maruyama", "controlled"])
def test_samples_are_written_whole_and_follow_the_seed(folder, sampler, capsys):
    drawn = []
    for seed in (0, 0, 1):
        args = ["sample", folder, "--sampler", sampler, "--steps", 2, "-n" if seed else "--n", 3, "--seed", seed]
        assert cli.main([str(arg) for arg in args]) == 0
        drawn.append(np.load(folder / f"samples-{sampler}.npy"))
    assert drawn[0].shape == (3, 8, 8, 1) and drawn[0].dtype == np.float32 and np.all(np.isfinite(drawn))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])
    assert (folder / f"samples-{sampler}.png").exists() and not list(folder.glob("*.part"))
    assert "3 pictures in" in capsys.readouterr().out


def test_every_sampler_that_is_offered_is_there():
    assert (*cli_training._samplers(), "controlled") == cli_training.SAMPLERS


def test_an_evaluation_is_a_file_of_numbers(folder, capsys):
    args = [
        "evaluate",
        str(folder),
        "--images",
        "1",
        "--samples",
        "4",
        "--steps",
        "2",
        "--ode-steps",
        "1",
        "--draws",
        "32",
    ]
    assert cli.main(args) == 0
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["images"] == 1 and found["step"] == 3 and all(np.isfinite(value) for value in found.values())
    told = capsys.readouterr().out
    assert all(name in told for name in found) and (folder / "evaluation.png").exists()
    for name in ("ode", "elbo"):
        assert f"{name.upper()} - I-MMSE  {found[f'{name}_minus_immse']:+.4f} +- " in told
    measured = {
        "flow_gaps": 1,
        "flow_gap": 0.07,
        "flow_gap_left": -0.01,
        "flow_gap_left_error": 0.02,
        "flow_gap_left_draws": 0.015,
    }
    told = cli_training._differences(found | measured)
    assert (
        "is to be +0.0700 on the first 1 pictures" in told
        and "off that by -0.0100 +- 0.0200, 0.0150 for want of" in told
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--sampler", "ddi"], "no sampler is named 'ddi'; did you mean 'ddim'?"),
        (["--steps", "0"], "steps must be at least 1, got steps=0"),
        (["--n", "0"], "n must be at least 1, got n=0"),
    ],
)
def test_sampling_is_refused_before_anything_is_written(folder, args, told, capsys):
    before = sorted(folder.iterdir())
    assert told in sentence(capsys, "sample", folder, *args)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_run_is_named_and_left_alone(command, tmp_path, capsys):
    assert "no run in" in sentence(capsys, command, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--steps", "0"], "steps must be positive, got steps=0"),
        (["--schedule", "cosin"], "did you mean 'cosine'?"),
        (["--times", "learn"], "no times is named 'learn'; did you mean 'learnt'?"),
        (["--batch", "4000"], "a batch must have 1 to 1500 pictures"),
        (["--data", "nowhere"], "no train-images-idx3-ubyte"),
    ],
)
def test_training_that_cannot_be_is_told_in_one_sentence(args, told, tmp_path, capsys):
    assert told in sentence(capsys, "train", tmp_path / "run", *TRAIN, *args)
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.part"))


def test_a_folder_of_another_run_is_refused_and_its_own_resumed(folder, capsys):
    before = (folder / "metrics.jsonl").read_bytes()
    assert "holds a run with steps=3, this one has steps=4" in sentence(capsys, "train", folder, *TRAIN, "--steps", 4)
    assert "holds a run at step 3: resume it" in sentence(capsys, "train", folder, *TRAIN)
    assert cli.main(["train", str(folder), *TRAIN, "--resume"]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_times_are_learnt_where_that_is_asked_for(tmp_path):
    assert cli.main(["train", str(tmp_path), *TRAIN, "--times", "learnt"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["times"] == "learnt"


def test_a_picture_is_drawn_where_it_is_asked_for(tmp_path, capsys):
    for name in ("weights", "spectrum", "bending", "churn"):
        assert cli.main(["plot", name, "--out", str(tmp_path / "w.png")]) == 0
        assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "w.png").unlink()
    assert "no picture is named 'weigths'; did you mean 'weights'?" in sentence(capsys, "plot", "weigths")
    assert "no folder" in sentence(capsys, "plot", "weights", "--out", tmp_path / "none" / "w.png")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    cli_training.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        cli_training.write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
