"""The command line: exit codes, one sentence on what is wrong, and verdicts written whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import cli, samplers
from diffeq_gen.schedules import Flow
from diffeq_gen.theorems import all_theorems, get

QUICK = "cosine-is-constant-speed"
FOREIGN = next(name for name, theorem in all_theorems().items() if not theorem.targets)


class Crooked(Flow):
    """Says of itself a log-SNR that it does not have."""

    def log_snr(self, t):
        return Flow().log_snr(t) + 1e-3


def rising(t):
    return t, 1 - t


@samplers.stateless
def promoting(denoise, schedule, z, t, s):
    """Euler's rule of the flow, with a factor of one more axis than a scalar has."""
    return z + (s - t) * (z - denoise(z, t)) / t * jnp.ones(z.shape[-1:], z.dtype)


@samplers.stateless
def flattened(denoise, schedule, z, t, s):
    return denoise(z, t).ravel()


@pytest.fixture(autouse=True)
def settings_are_put_back(monkeypatch, tmp_path):
    """The command sets up a compilation cache for its own process; here that is ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [
        "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion",
    ]  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """A module of the user's, in the folder that the command is run in."""
    (tmp_path / "my_schedules.py").write_text("from tests.test_cli import Crooked, rising\nnumber = 3\n")
    (tmp_path / "my_samplers.py").write_text("from tests.test_cli import flattened, promoting\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def sentence(capsys, *args):
    """What bad input is told: exit code 2, one line on standard error, and nothing else."""
    assert cli.main(list(args)) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and told.err.startswith("diffeq-gen: ")
    return told.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["verify", "ddim-updat"], "no theorem is named 'ddim-updat'; did you mean 'ddim-update'?"),
        (["show", "ddim-updat"], "no theorem is named 'ddim-updat'; did you mean 'ddim-update'?"),
        (["verify", QUICK, "--cases", "0"], "cases must be at least 1, got cases=0"),
        (["verify", QUICK, "--json", "nowhere/out.json"], "no folder"),
        (["verify", "--schedule", "flow"], "an object is named as package.module:name, got 'flow'"),
        (["verify", "--schedule", "no_such_module:flow"], "cannot import 'no_such_module'"),
        (["verify", "--schedule", "diffeq_gen.schedules:Flo"], "did you mean 'Flow'?"),
        (["verify", "--schedule", "my_schedules:rising"], "log-SNR must decrease in t"),
        (["verify", "--assuming", "kindness"], "assuming must be one of variance-preserving, exact-for-a-point"),
        (
            ["verify", "--schedule", "diffeq_gen.schedules:Flow", "--assuming", "order-2"],
            "variance-preserving, got 'order-2'",
        ),
        (["verify", "--sampler", "diffeq_gen.samplers:ddi"], "did you mean 'ddim'?"),
        (
            ["verify", "--sampler", "my_samplers:number"],
            "a method is (denoise, schedule) -> Sampler(init, step, noises), got 3",
        ),
        (["verify", "--sampler", "diffeq_gen.samplers:sample"], "got sample: sample() missing 2 required positional"),
        (["verify", FOREIGN, "--sampler", "diffeq_gen.samplers:ddim"], f"{FOREIGN} is not about any sampler"),
        (["verify", FOREIGN, "--schedule", "diffeq_gen.schedules:Flow"], f"{FOREIGN} is not about any schedule"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_bad_input_is_told_in_one_sentence(args, told, capsys):
    assert told in sentence(capsys, *args)


@pytest.mark.usefixtures("mine")
def test_what_is_no_schedule_is_refused(capsys):
    assert "schedule" in sentence(capsys, "verify", "--schedule", "my_schedules:number")


@pytest.mark.parametrize("args", [["verify", "--casses", "3"], ["prove"], [], ["show"], ["verify", "--cases", "many"]])
def test_unknown_options_and_commands_exit_with_two(args, capsys):
    assert cli.main(args) == 2
    assert capsys.readouterr().err


def test_help_is_no_error(capsys):
    assert cli.main(["verify", "--help"]) == 0
    assert "--schedule" in capsys.readouterr().out


def test_verdicts_are_written_whole(tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    assert cli.main(["verify", QUICK, "--cases", "5", "--json", str(path)]) == 0
    (record,) = json.loads(path.read_text())
    theorem = get(QUICK)
    assert record["name"] == QUICK and record["holds"] is True and record["counterexample"] is None
    assert record["statement"] == theorem.statement and record["source"] == theorem.source
    assert record["near_misses"] == [miss.name for miss in theorem.misses]
    assert set(record["residual_over_bound"]) == {"float64", "float32"}
    assert all(0 <= value <= 1 for value in record["residual_over_bound"].values())
    assert [found.name for found in tmp_path.glob("verdicts*")] == ["verdicts.json"]
    assert "1 of 1 theorems hold" in capsys.readouterr().out


@pytest.mark.usefixtures("mine")
def test_a_schedule_that_contradicts_itself_is_refuted_with_exit_code_one(tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    args = [
        "verify",
        "log-snr-matches-point",
        "--schedule",
        "my_schedules:Crooked",
        "--cases",
        "5",
        "--json",
        str(path),
    ]
    assert cli.main(args) == 1
    told = capsys.readouterr().out
    assert "REFUTED" in told and "0 of 1 theorems hold" in told and "Crooked()" in told
    (record,) = json.loads(path.read_text())
    assert record["holds"] is False and record["counterexample"].startswith("log-snr-matches-point: residual")


@pytest.mark.usefixtures("mine")
def test_a_sampler_of_ones_own_is_checked_and_proven_on_its_schedule(tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    args = ["rows-do-not-mix", "--sampler", "my_samplers:promoting", "--schedule", "diffeq_gen.schedules:Flow"]
    assert cli.main(["verify", *args, "--cases", "5", "--json", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("10 of 10 checks hold (checks, not residuals)") and "1 of 1 theorems hold" in told
    records = json.loads(path.read_text())
    assert [record["kind"] for record in records] == ["check"] * 10 + ["identity"]
    assert all(record["holds"] for record in records)


@pytest.mark.usefixtures("mine")
def test_a_step_that_does_not_conform_exits_with_one_and_says_so(capsys):
    assert cli.main(["verify", "rows-do-not-mix", "--sampler", "my_samplers:flattened", "--cases", "5"]) == 1
    told = capsys.readouterr().out
    assert "shape             a step makes (1,) of ()" in told
    assert "rows-do-not-mix: ValueError: a step must keep the shape of z, got (4,) from (2, 2)" in told


def test_the_index_and_a_page_of_it(capsys):
    assert cli.main(["theorems"]) == 0
    index = capsys.readouterr().out
    assert QUICK in index and "\nschedule_algebra\n" in index
    assert cli.main(["show", QUICK]) == 0
    shown = capsys.readouterr().out
    theorem = get(QUICK)
    assert theorem.statement in shown and theorem.source in shown
    assert all(f"near miss, refuted: {miss.name}" in shown for miss in theorem.misses)


def test_an_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffeq_gen.theorems.suite.select", interrupted)
    assert sentence(capsys, "verify") == "diffeq-gen: interrupted\n"


def test_a_module_that_is_missing_is_named_with_its_remedy(monkeypatch, capsys):
    def missing(*args, **options):
        raise ModuleNotFoundError("No module named 'sympy'", name="sympy")

    monkeypatch.setattr("diffeq_gen.theorems.suite.select", missing)
    assert "sympy is missing: pip install 'diffeq-gen[demo]'" in sentence(capsys, "verify")


def test_a_claim_that_raises_is_refuted_and_not_skipped(monkeypatch, tmp_path):
    def broken(self, **options):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("diffeq_gen.theorems.registry.Theorem.check", broken)
    path = tmp_path / "verdicts.json"
    assert cli.main(["verify", QUICK, "--json", str(path)]) == 1
    assert json.loads(path.read_text())[0]["counterexample"] == f"{QUICK}: ZeroDivisionError: by nothing"
    assert np.isfinite(json.loads(path.read_text())[0]["seconds"])
