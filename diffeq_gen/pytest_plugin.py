"""A pytest plugin: every law that any schedule, or any sampler, owes becomes one test item of the user's own run.

    pytest --diffeq-schedule mypackage:cosine [--diffeq-assuming variance-preserving] [--diffeq-cases 1000]
    pytest --diffeq-sampler mypackage:solver [--diffeq-assuming order-2]

The module is loaded by every pytest run on a machine where diffeq_gen is installed, so it imports nothing until asked.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ["LawPlugin", "pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options --diffeq-schedule, --diffeq-sampler, --diffeq-assuming and --diffeq-cases."""
    group = parser.getgroup("diffeq_gen", "theorems on one's own schedule or sampler")
    group.addoption("--diffeq-schedule", metavar="PKG:OBJ", help="check the schedule that this names")
    group.addoption(
        "--diffeq-sampler", metavar="PKG:OBJ", help="check the sampler that this makes of (denoise, schedule)"
    )
    declared = (
        "what is declared of it: variance-preserving; exact-for-a-point, scale-invariant, order-2, order-3, order-4"
    )
    group.addoption("--diffeq-assuming", action="append", default=[], help=declared)
    group.addoption("--diffeq-cases", type=int, default=None, help="cases per theorem and precision")


def pytest_configure(config: pytest.Config) -> None:
    """Adds the items of the schedule, or the sampler, that was named, if one was.

    Raises: pytest.UsageError where it is none.
    """
    named = {name: config.getoption(f"--diffeq-{name}", None) for name in ("schedule", "sampler")}
    specs = {name: spec for name, spec in named.items() if spec is not None}
    if specs:
        config.pluginmanager.register(LawPlugin(config, specs), "diffeq_gen-laws")


class LawPlugin:
    """Collects one item per theorem, and for a sampler one more: that it conforms."""

    def __init__(self, config: pytest.Config, specs: dict[str, str]) -> None:
        from diffeq_gen.theorems.suite import load, select

        try:
            self.mine = {name: load(spec) for name, spec in specs.items()}
            self.theorems = select(**self.mine, assuming=config.getoption("--diffeq-assuming"))
        except (ValueError, TypeError) as error:
            raise pytest.UsageError(str(error)) from error
        self.cases = config.getoption("--diffeq-cases")
        if self.cases is not None and self.cases < 1:
            raise pytest.UsageError(f"cases must be at least 1, got --diffeq-cases {self.cases}")

    def judges(self) -> dict[str, Callable[[], str]]:
        """Name -> what says why it does not hold, or nothing where it does."""
        laws = {entry.name: lambda entry=entry: self._refuted(entry) for entry in self.theorems}
        return {"conform": self._amiss, **laws} if "sampler" in self.mine else laws

    def _refuted(self, entry: Any) -> str:
        return entry.check(cases=self.cases, **self.mine).reason

    def _amiss(self) -> str:
        from diffeq_gen.samplers import conform

        report = conform(self.mine["sampler"], schedule=self.mine.get("schedule"))
        return "" if report else str(report)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> Iterator[None]:
        """The laws stand in front of the user's own tests."""
        collector = _Laws.from_parent(session, name="diffeq_gen", nodeid="diffeq_gen")
        items[:0] = [_Law.from_parent(collector, name=name, judge=judge) for name, judge in self.judges().items()]
        yield


class _Laws(pytest.Collector):
    """The node that the laws hang from."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: the plugin adds the items itself."""
        return []


class _Law(pytest.Item):
    """One theorem on the user's schedule or sampler."""

    def __init__(self, *, judge: Callable[[], str], **options: Any) -> None:
        super().__init__(**options)
        self.judge = judge

    def runtest(self) -> None:
        """Fails with the counterexample."""
        reason = self.judge()
        if reason:
            raise AssertionError(reason)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The counterexample alone, not the plugin's own traceback."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, int, str]:
        """Named after the theorem."""
        return "diffeq_gen", 0, f"diffeq_gen::{self.name}"
