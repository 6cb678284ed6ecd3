"""The pytest plugin, in a test run of its own: one item per law, and silence until it is asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAWS = """
import pytest

from diffeq_gen.samplers import stateless
from diffeq_gen.schedules import Flow, at


class Crooked(Flow):
    def log_snr(self, t):
        return Flow().log_snr(t) + 1e-3


def rising(t):
    return t, 1 - t


@stateless
def half(denoise, schedule, z, t, s):
    # half of a DDIM step
    p, q, x0 = at(schedule, t), at(schedule, s), denoise(z, t)
    return (z + q.alpha * x0 + q.sigma * (z - p.alpha * x0) / p.sigma) / 2


@stateless
def flattened(denoise, schedule, z, t, s):
    return denoise(z, t).ravel()


@pytest.hookimpl(tryfirst=True)  # an installed plugin is registered after those of -p, and would be configured first
def pytest_configure(config):
    spec, method = config.getoption("--diffeq-schedule"), config.getoption("--diffeq-sampler")
    if spec is not None or method is not None:  # one law is enough here
        from diffeq_gen.theorems import suite
        law = "log-snr-matches-point" if "Crooked" in str(spec) else "slopes-are-derivatives"
        law = law if method is None else "one-step-keeps-the-marginals" if "half" in method else "rows-do-not-mix"
        select = suite.select
        suite.select = lambda **options: [entry for entry in select(**options) if entry.name == law]
"""

OWN = """
def test_mine():
    import sys
    assert {heavy} ("jax" in sys.modules or "diffeq_gen.schedules" in sys.modules)
"""


def run(folder, *options, heavy=True):
    """pytest in a folder with one test of the user's own."""
    (folder / "my_laws.py").write_text(LAWS)
    (folder / "test_own.py").write_text(OWN.format(heavy="" if heavy else "not"))
    path = os.pathsep.join([str(ROOT), str(folder)])
    plugins = [] if registered() else ["-p", "diffeq_gen.pytest_plugin"]
    plugins += ["-p", "my_laws"] if heavy else []
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *plugins, *options],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PYTEST_ADDOPTS": ""},
    )  # fmt: skip


def registered():
    """Whether this installation announces the plugin to pytest by itself."""
    from importlib.metadata import entry_points

    return any(entry.value == "diffeq_gen.pytest_plugin" for entry in entry_points(group="pytest11"))


def test_every_law_is_an_item_before_the_users_own(tmp_path):
    done = run(tmp_path, "--diffeq-schedule", "diffeq_gen.schedules:Cosine", "--diffeq-cases", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " PASSED" in line]
    assert "slopes-are-derivatives" in lines[0] and "test_mine" in lines[-1] and len(lines) == 2


def test_a_law_that_is_broken_fails_with_its_counterexample_alone(tmp_path):
    done = run(tmp_path, "--diffeq-schedule", "my_laws:Crooked", "--diffeq-cases", "5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout and "log-snr-matches-point: residual" in done.stdout
    assert "Crooked()" in done.stdout and "pytest_plugin.py" not in done.stdout


def test_a_sampler_is_one_item_that_conforms_and_one_for_each_law(tmp_path):
    done = run(tmp_path, "--diffeq-sampler", "diffeq_gen.samplers:ddim", "--diffeq-cases", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " PASSED" in line]
    assert all(name in line for name, line in zip(("conform", "rows-do-not-mix", "test_mine"), lines, strict=True))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("half", "one-step-keeps-the-marginals: its errors miss a slope of 2"),
        ("flattened", "shape             a step makes (1,) of ()"),
    ],
)
def test_a_sampler_that_is_wrong_fails_by_what_it_breaks(tmp_path, named, told):
    options = ["--diffeq-sampler", f"my_laws:{named}", "--diffeq-schedule", "diffeq_gen.schedules:Flow"]
    done = run(tmp_path, *options, "--diffeq-cases", "5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout and "pytest_plugin.py" not in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--diffeq-sampler", "diffeq_gen.samplers:sample"], "a method is (denoise, schedule) -> Sampler"),
        (
            ["--diffeq-sampler", "diffeq_gen.samplers:ddim", "--diffeq-assuming", "variance-preserving"],
            "assuming must be one of exact",
        ),
        (["--diffeq-schedule", "my_laws:rising"], "log-SNR must decrease in t"),
        (["--diffeq-schedule", "my_laws"], "an object is named as package.module:name, got 'my_laws'"),
        (["--diffeq-schedule", "my_laws:Crooked", "--diffeq-assuming", "kindness"], "assuming must be one of"),
        (["--diffeq-schedule", "my_laws:Crooked", "--diffeq-cases", "0"], "cases must be at least 1"),
    ],
)
def test_what_is_no_schedule_or_sampler_is_a_usage_error(tmp_path, options, told):
    done = run(tmp_path, *options)
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"ERROR: {told}" in done.stderr and "Traceback" not in done.stderr


def test_without_the_option_nothing_is_imported(tmp_path):
    done = run(tmp_path, heavy=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
