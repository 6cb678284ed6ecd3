"""The suite: whoever runs the theorems, threads or processes, the verdicts are the same and none is lost."""

import dataclasses
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import pytest

from diffeq_gen import schedules
from diffeq_gen.theorems import get, suite

NAMES = ("cosine-is-constant-speed", "edm-f-is-minus-v", "log-snr-matches-point")


def verdicts(**options):
    found = suite.run([get(name) for name in NAMES], cases=5, **options)
    plain = [dataclasses.replace(verdict, seconds=0.0) for verdict in found]
    return sorted(plain, key=lambda verdict: verdict.name)


def test_processes_find_what_threads_find():
    apart = verdicts(processes=True)
    assert apart == verdicts()
    assert [verdict.name for verdict in apart] == sorted(NAMES) and all(apart)


def test_a_worker_process_computes_as_its_parent_is_set_to():
    before = jax.config.jax_numpy_rank_promotion
    other = "warn" if before == "raise" else "raise"
    jax.config.update("jax_numpy_rank_promotion", other)
    try:
        with suite._processes(1) as pool:
            seen = pool.submit(eval, "__import__('jax').config.jax_numpy_rank_promotion").result()
    finally:
        jax.config.update("jax_numpy_rank_promotion", before)
    assert seen == other


def test_a_theorem_travels_by_name():
    for name in NAMES:
        assert pickle.loads(pickle.dumps(get(name))) is get(name)


def test_a_killed_worker_is_told_and_not_taken_for_a_verdict(monkeypatch):
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(suite, "_processes", lambda n: ProcessPoolExecutor(n, spawn, os._exit, (1,)))
    with pytest.raises(ChildProcessError, match="a worker process was killed"):
        list(suite.run([get(name) for name in NAMES], processes=True))


@pytest.mark.parametrize(
    "options", [{}, {"processes": True, "workers": 3}, {"processes": True, "schedule": schedules.Flow()}]
)
def test_few_theorems_and_a_schedule_of_ones_own_stay_in_the_process(monkeypatch, options):
    monkeypatch.setattr(suite, "_processes", None)
    monkeypatch.setattr("diffeq_gen.theorems.registry.Theorem.check", lambda entry, **options: entry.name)
    assert sorted(suite.run([get(name) for name in NAMES], **options)) == sorted(NAMES)


def test_what_has_not_begun_is_dropped_when_no_one_listens(monkeypatch):
    asked = []

    def slow(entry, **options):  # instant ones could all be done before the first is read
        asked.append(entry)
        time.sleep(0.05)

    monkeypatch.setattr("diffeq_gen.theorems.registry.Theorem.check", slow)
    found = suite.run([get(NAMES[0])] * 200, workers=1)
    next(found)
    found.close()
    assert len(asked) < 200
