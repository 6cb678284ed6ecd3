"""Two programs side by side: A and B in turn, so that whatever else the machine does falls on both.

    ratio = median over pairs of seconds(A_i) / seconds(B_i),       pairs ABBA ABBA ...

The order alternates, so that a drift of the machine cancels; the quartiles say how far the median can be trusted.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

__all__ = ["Pairs", "compare", "head", "line", "load"]


class Pairs(NamedTuple):
    """What a comparison measured: median seconds of both, the median of the ratios A / B and their quartiles."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    count: int


def compare(
    a: Callable[[], Any], b: Callable[[], Any], *, pairs: int = 40, clock: Callable[[], float] = time.perf_counter
) -> Pairs:
    """Runs both once unmeasured, then in `pairs` pairs; each call is waited for.

    `time.process_time` as the clock counts the seconds of the cores of this process, however busy the machine.
    """
    jax.block_until_ready((a(), b()))
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        for which in (0, 1) if i % 2 else (1, 0):
            start = clock()
            jax.block_until_ready((a, b)[which]())
            seconds[which].append(clock() - start)
    ratios = [x / y for x, y in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Pairs(statistics.median(seconds[0]), statistics.median(seconds[1]), middle, low, high, pairs)


def load() -> str:
    """How busy the machine is, for whoever reads the numbers."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def head(title: str, names: tuple[str, str], target: float | None = None) -> None:
    """The first lines of a table: what, where, how busy."""
    goal = "" if target is None else f", target {target:.2f}"
    print(f"{title} ({load()}){goal}")
    print(f"  {'':32} {names[0] + ' ms':>14} {names[1] + ' ms':>14}   ratio (quartiles)      pairs", flush=True)


def line(name: str, found: Pairs) -> None:
    """One comparison, as soon as it is there."""
    print(f"  {name:32} {found.a * 1e3:14.2f} {found.b * 1e3:14.2f}   "
          f"{found.ratio:.3f} ({found.low:.3f}, {found.high:.3f})   {found.count}", flush=True)  # fmt: skip
