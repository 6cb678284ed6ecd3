"""How long `diffeq-gen verify` takes: one identity on a million cases, and the whole, cold and warm.

    python -m benchmarks.verify [--only cases|whole] [--cases 1000000] [--names transition-kernel path-conversions]

The million counts twice, in float64 and in float32.  Cold is an empty compilation cache, in a folder of its own; warm is the
same command again.  All seconds are of the whole command, with the interpreter's start.  Beside them stand the seconds of
processor time: divided by the cores, what an idle machine could not go below, whatever else runs meanwhile.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks.pairs import load

TARGETS = {"cases": 10, "cold": 240, "warm": 120}


def verify(*arguments: str, cache: str) -> tuple[str, str, int]:
    """(seconds, the verdict's line, the exit code) of the command with its cache in the folder."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "diffeq_gen", "verify", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": cache}, capture_output=True, text=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = (done.stdout + done.stderr).strip().splitlines()
    line = next((line for line in lines if "theorems hold" in line), "".join(lines[-1:]))
    return f"{wall:.1f} s, processor {busy:.1f} s", line.split(". ")[0], done.returncode


def main() -> None:
    """The named identities first, each cold; then everything, cold and warm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("cases", "whole"))
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--names", nargs="+", default=["transition-kernel", "path-conversions"])
    options = parser.parse_args()
    if options.only != "whole":
        for name in options.names:
            for kind in ("cold", "warm"):
                with tempfile.TemporaryDirectory() as cache:
                    if kind == "warm":
                        verify(name, "--cases", "20", cache=cache)
                    taken, line, code = verify(name, "--cases", str(options.cases), cache=cache)
                print(f"{name}, {options.cases} cases, {kind}: {taken} (target {TARGETS['cases']} s; {load()}), "
                      f"exit {code}: {line}", flush=True)  # fmt: skip
    if options.only != "cases":
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("cold", "warm"):
                taken, line, code = verify(cache=cache)
                print(
                    f"whole verify, {kind}: {taken} (target {TARGETS[kind]} s; {load()}), exit {code}: {line}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
