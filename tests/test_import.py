"""What an import costs: floors 0-5 need only jax, chex and numpy; `import diffeq_gen` alone loads nothing."""

import json
import subprocess
import sys

import pytest

from tests.test_house import CHAPTERS, FLOORS, ROOT

HEAVY = {
    "flax", "optax", "orbax", "hypothesis", "sympy", "mpmath", "matplotlib", "rich", "tyro", "sklearn", "tensorstore",
    "diffrax", "equinox", "lineax", "optimistix", "jaxtyping",
}  # fmt: skip
LIGHT = [chapter for chapter in CHAPTERS if FLOORS[chapter] <= 5]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_the_package_alone_loads_no_chapter_and_no_jax():
    assert not loaded_by("import diffeq_gen") & (HEAVY | {"jax", "numpy", "chex"})


def test_floors_0_to_5_import_jax_chex_and_numpy_only():
    """In one interpreter: what one chapter may not load, none may."""
    assert not loaded_by("\n".join(f"import diffeq_gen.{chapter}" for chapter in LIGHT)) & HEAVY


def test_the_theorems_need_no_network_and_no_picture():
    """`diffeq-gen[prove]` installs none of these; optax and what it brings it does install."""
    assert not loaded_by("import diffeq_gen.theorems") & {"flax", "orbax", "sklearn", "matplotlib", "tensorstore"}


def test_the_pytest_plugin_loads_nothing_heavy():
    """It is imported by every test run on the machine where the package is installed."""
    assert not loaded_by("import diffeq_gen.pytest_plugin") & (HEAVY | {"jax", "chex"})


def test_a_chapter_is_imported_when_it_is_named():
    code = "import diffeq_gen as dg, sys; dg.schedules.Flow(); print('diffeq_gen.exact' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr


def test_an_unknown_chapter_is_refused_by_name():
    import diffeq_gen

    with pytest.raises(AttributeError, match="no chapter 'schedule'"):
        diffeq_gen.schedule  # noqa: B018
