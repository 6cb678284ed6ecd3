"""What `import diffeq_gen` adds to `import jax`, in fresh interpreters.

    python -m benchmarks.imports [--pairs 15]

Every module of the package that a program is likely to want comes after, each for itself.
"""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.pairs import load

TARGET = 0.2
BASE = "import jax, jax.numpy"
PROGRAMS = {
    "diffeq_gen": "import diffeq_gen",
    "diffeq_gen.nets": "import diffeq_gen.nets",
    "diffeq_gen.training": "import diffeq_gen.training",
    "diffeq_gen.theorems": "import diffeq_gen.theorems",
    "diffeq_gen.cli": "import diffeq_gen.cli",
}


def seconds(program: str) -> float:
    """Wall-clock seconds of a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Base and program in turn; the median of the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    print(f"imports ({load()}), target {TARGET} s for diffeq_gen itself")
    print(f"  {'':22} {'jax s':>8} {'both s':>8}   added s (quartiles)")
    for name, program in PROGRAMS.items():
        pairs = []
        for i in range(options.pairs + 1):
            programs = (BASE, f"{BASE}; {program}")
            first = i % 2
            taken = {which: seconds(programs[which]) for which in (first, 1 - first)}
            pairs.append((taken[0], taken[1]))
        pairs = pairs[1:]  # the first reads the disk
        low, middle, high = statistics.quantiles([both - alone for alone, both in pairs], n=4)
        alone, both = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"  {name:22} {alone:8.2f} {both:8.2f}   {middle:.3f} ({low:.3f}, {high:.3f})")


if __name__ == "__main__":
    main()
