"""A pytest plugin: every law that any schedule owes becomes one test item of the user's own run.

    pytest --diffeq-schedule mypackage:cosine [--diffeq-assuming variance-preserving] [--diffeq-cases 1000]

The module is loaded by every pytest run on a machine where diffeq_gen is installed, so it imports nothing until asked.
"""

from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["SchedulePlugin", "pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options --diffeq-schedule, --diffeq-assuming and --diffeq-cases."""
    group = parser.getgroup("diffeq_gen", "theorems on one's own schedule")
    group.addoption("--diffeq-schedule", metavar="PKG:OBJ", help="check the schedule that this names")
    group.addoption(
        "--diffeq-assuming", action="append", default=[], help="what is declared of it: variance-preserving"
    )
    group.addoption("--diffeq-cases", type=int, default=None, help="cases per theorem and precision")


def pytest_configure(config: pytest.Config) -> None:
    """Adds the items of the schedule that was named, if one was.

    Raises: pytest.UsageError where it is no schedule.
    """
    spec = config.getoption("--diffeq-schedule", None)
    if spec is not None:
        config.pluginmanager.register(SchedulePlugin(config, spec), "diffeq_gen-schedule")


class SchedulePlugin:
    """Collects one item per theorem."""

    def __init__(self, config: pytest.Config, spec: str) -> None:
        from diffeq_gen.theorems.suite import load, select

        try:
            self.schedule = load(spec)
            self.theorems = select(schedule=self.schedule, assuming=config.getoption("--diffeq-assuming"))
        except (ValueError, TypeError) as error:
            raise pytest.UsageError(str(error)) from error
        self.cases = config.getoption("--diffeq-cases")
        if self.cases is not None and self.cases < 1:
            raise pytest.UsageError(f"cases must be at least 1, got --diffeq-cases {self.cases}")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> Iterator[None]:
        """The laws stand in front of the user's own tests."""
        collector = _Laws.from_parent(session, name="diffeq_gen", nodeid="diffeq_gen")
        items[:0] = [
            _Law.from_parent(collector, name=entry.name, theorem=entry, plugin=self) for entry in self.theorems
        ]
        yield


class _Laws(pytest.Collector):
    """The node that the laws hang from."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: the plugin adds the items itself."""
        return []


class _Law(pytest.Item):
    """One theorem on the user's schedule."""

    def __init__(self, *, theorem: Any, plugin: SchedulePlugin, **options: Any) -> None:
        super().__init__(**options)
        self.theorem, self.plugin = theorem, plugin

    def runtest(self) -> None:
        """Fails with the counterexample."""
        verdict = self.theorem.check(cases=self.plugin.cases, schedule=self.plugin.schedule)
        if not verdict:
            raise AssertionError(verdict.reason)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The counterexample alone, not the plugin's own traceback."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, int, str]:
        """Named after the theorem."""
        return "diffeq_gen", 0, f"diffeq_gen::{self.name}"
