"""The demo: one page that needs nothing beside it and says what was found."""

import re

import jax
import pytest

from diffeq_gen.demo import demo
from diffeq_gen.theorems import get

NAMES = ("cosine-is-constant-speed", "edm-f-is-minus-v")


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture
def small(monkeypatch):
    """Two theorems, a small network, and few steps where the demo takes many."""
    from diffeq_gen import training
    from diffeq_gen.theorems import suite

    whole, evaluate = training.Config, training.evaluate
    monkeypatch.setattr(suite, "select", lambda: [get(name) for name in NAMES])
    monkeypatch.setattr(training, "Config", lambda steps, batch: whole(net="mlp", channels=(8,), steps=steps, batch=16))
    monkeypatch.setattr(
        training,
        "evaluate",
        lambda run, key, **options: evaluate(run, key, **{**options, "samples": 4, "ode_steps": 1}),
    )


@pytest.mark.usefixtures("small")
def test_the_report_is_one_file_and_can_be_made_again(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("not the demo's")
    for steps in (2, 3):  # the second replaces the first, whose run had another configuration
        assert demo(out=tmp_path, steps=steps, cases=5, images=1) == 0
    page = (tmp_path / "index.html").read_text()
    assert "http" not in page and "<script" not in page and "<link" not in page
    sources = re.findall(r'src="([^"]{0,22})', page)
    assert len(sources) == 5 and set(sources) == {"data:image/png;base64,"}
    assert all(name in page for name in NAMES) and "2 of 2 theorems hold" in page and "3 steps" in page
    assert "2 of 2 theorems hold" in capsys.readouterr().out
    assert (tmp_path / "mine.txt").exists() and not list(tmp_path.rglob("*.part"))


@pytest.mark.usefixtures("small")
def test_a_refuted_theorem_is_shown_and_told(tmp_path, capsys, monkeypatch):
    def broken(self, **options):
        raise ZeroDivisionError("by <nothing>")

    monkeypatch.setattr("diffeq_gen.theorems.registry.Theorem.check", broken)
    assert demo(out=tmp_path, steps=2, cases=5, images=1) == 1
    assert '<td class="refuted">refuted</td>' in (tmp_path / "index.html").read_text()
    assert f"{NAMES[0]}: ZeroDivisionError: by <nothing>" in capsys.readouterr().out
