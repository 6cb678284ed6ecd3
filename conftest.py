"""Both test trees and the doctests run strictly: no warning, no silent rank or dtype promotion, eight CPU devices.

``JAX_ENABLE_X64=0 pytest`` repeats everything that does not fix its own precision in float32;
``XLA_FLAGS=--xla_backend_optimization_level=3 pytest`` tests the machine code that users run: most of a test is compilation, which
takes half of the time where LLVM optimises nothing;
``pytest --hypothesis-profile=campaign`` searches longer, with fresh randomness and a memory outside the tree.
"""

import gc
import itertools
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

import hypothesis
import jax
import pytest
from hypothesis import configuration
from hypothesis.database import DirectoryBasedExampleDatabase

jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1").lower() in ("1", "true"))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

MEMORY = Path(tempfile.gettempdir()) / f"diffeq_gen-hypothesis-{os.getuid() if hasattr(os, 'getuid') else 0}"
configuration.set_hypothesis_home_dir(MEMORY)
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=False)
hypothesis.settings.register_profile(
    "campaign",
    derandomize=False,
    deadline=None,
    max_examples=5_000,
    database=DirectoryBasedExampleDatabase(MEMORY / "examples"),
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


MAPS, MOST, EVERY, COUNT = Path("/proc/self/maps"), 30_000, 20, itertools.count()


def pytest_runtest_teardown() -> None:
    """Lets go of what JAX has compiled, before it is too much.

    A compiled program keeps some twenty memory maps, and Linux grants a process 65,530: the program that would need one more
    ends the process.
    """
    if next(COUNT) % EVERY == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest):
    """Runs a test once in each precision; its value is the name of the dtype."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param
