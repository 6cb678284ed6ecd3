"""Every theorem holds, in float64 and float32, and every near miss is refuted; then hypothesis looks where batches do not."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffeq_gen.theorems import all_theorems
from diffeq_gen.theorems.domains import draw

THEOREMS = all_theorems()


@pytest.mark.parametrize("name", THEOREMS)
def test_theorem(name):
    verdict = THEOREMS[name].check()
    assert verdict, verdict.reason
    assert verdict.near_misses >= 1 and verdict.cases >= 1


@pytest.mark.parametrize("name", ["kl-contraction", "kl-velocity-derivative"])
def test_the_seed_that_once_overflowed(name):
    """sigma^2 = 1e17 in float32: a determinant's square is no float32 any more."""
    verdict = THEOREMS[name].check(seed=3_000_000, precisions=("float32",), cases=1000)
    assert verdict.residual_over_bound["float32"] <= 1, verdict.reason


CHEAP = [
    name
    for name, entry in THEOREMS.items()
    if entry.kind == "identity" and entry.cases >= 1000 and not any(d.variants for d in entry.domains.values())
]


@pytest.mark.parametrize("name", CHEAP[::8])
def test_hypothesis_finds_nothing_in_the_corners(name):
    """The unit cube of the domains, searched by hypothesis: its floats love 0, 1 and their neighbours."""
    entry = THEOREMS[name]
    cubes = st.fixed_dictionaries(
        {
            variable: st.lists(st.floats(0, 1), min_size=domain.size, max_size=domain.size)
            for variable, domain in entry.domains.items()
        }
    )

    @settings(max_examples=10 if settings.default.derandomize else 1_000)
    @given(cubes)
    def search(cube):
        case = {}
        for variable, domain in entry.domains.items():
            case[variable] = domain.build(np.asarray(cube[variable], np.float64).reshape(1, -1), case)
        leaves, treedef = jax.tree.flatten(case)
        single = jax.tree.unflatten(treedef, [np.asarray(leaf)[0] for leaf in leaves])
        finding = entry.measure_at(single)
        assert finding.ratio <= 1, (finding.ratio, cube)

    search()


def test_the_seed_decides_the_cases():
    entry = THEOREMS["path-conversions"]
    one, same, other = (jax.tree.leaves(draw(entry.domains, 16, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
