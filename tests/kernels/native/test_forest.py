"""Forests of decision trees natively, against the same trees in numpy and against a plain walk in float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.forest_reading import ensemble_nodes, listed_nodes
from kernels.native.families.forest import Combine, Total, Trees, Walk, emit_total, emit_walk, leaf_layout, packed_bytes
from tests.kernels import forests
from tests.kernels.forests import Branch, Leaf
from tests.kernels.native.reference import run_kernel

COMBINE: dict[str, Combine] = {"SUM": "add", "AVERAGE": "add", "MIN": "minnum", "MAX": "maxnum"}
SMALLEST = np.finfo(np.float32).tiny


def run(isa, forest, x, aggregate="SUM", targets=1, like=None):
    """Return the totals that kernels compute, over poisoned memory. like: run the code of these kernels, made for other sizes."""
    combine = COMBINE[aggregate]
    trees = Trees(forest, x.dtype, targets, combine)
    packed = {"nodes": trees.nodes(), "roots": trees.roots(), "weights": trees.weights(), "targets": trees.targets()}
    assert packed["weights"].dtype == trees.weight_dtype
    walk = Walk(len(x), x.shape[1], targets, trees.groups, x.dtype, trees.weight_dtype, trees.layout, combine, trees.nans)
    kernels = [emit_walk(walk, isa), emit_total(Total(len(x), targets, walk.blocks, x.dtype, combine), isa)]
    if like is not None:
        assert [kernel.name for kernel in kernels] == [kernel.name for kernel in like]
        kernels = [replace(kernel, emit=other.emit) for kernel, other in zip(kernels, like, strict=True)]
    part = np.full(walk.blocks * len(x) * targets + 8, -77.0)
    base = np.array([len(forest.roots) if aggregate == "AVERAGE" else 1, *range(targets)], np.float64)
    y = np.full((len(x) + 1, targets), -77, x.dtype)
    run_kernel(kernels[0], isa, x=x, **packed, y=part)
    run_kernel(kernels[1], isa, x=part, base=base, y=y)
    assert (part[-8:] == -77).all()
    assert (y[-1] == -77).all()
    return y[:-1], kernels


def check(isa, forest, x, aggregate="SUM", targets=1, like=None):
    """Compare the totals with those in numpy."""
    made, kernels = run(isa, forest, x, aggregate, targets, like)
    wanted = (forest.totals(x, aggregate, targets) + np.arange(targets)).astype(x.dtype)
    np.testing.assert_allclose(made, wanted, rtol=4 * np.finfo(x.dtype).eps, atol=np.finfo(x.dtype).eps)
    return kernels


def grown(trees, depth, seed=0, *, targets=1, entries=1, missing=False, dtype=np.float32):
    """Return a forest of full trees over five features, with some entries a leaf."""
    rng = np.random.default_rng(seed)

    def tree(level):
        if level == 0:
            chosen = rng.choice(targets, entries, replace=False)
            return Leaf([(int(target), float(rng.standard_normal())) for target in chosen])
        feature, split = int(rng.integers(5)), float(rng.standard_normal())
        return Branch(feature, "BRANCH_LEQ", split, missing and bool(rng.integers(2)), tree(level - 1), tree(level - 1))

    forest = listed_nodes(forests.listed([tree(depth) for _ in range(trees)]), "target")
    return forest._replace(weights=forest.weights.astype(dtype))


def rows(count, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("targets", "entries", "layout"), [(1, 1, "number"), (7, 1, "entry"), (7, 7, "row"), (19, 3, "row")])
def test_leaves_of_every_layout(isa, targets, entries, layout, dtype):
    forest = grown(11, 4, targets=targets, entries=entries)
    assert leaf_layout(forest, targets) == layout
    check(isa, forest, rows(9, dtype), targets=targets)


@pytest.mark.parametrize("aggregate", COMBINE)
def test_every_aggregate(isa, aggregate):
    for targets, entries in ((1, 1), (4, 1), (4, 2)):
        check(isa, grown(9, 3, targets=targets, entries=entries), rows(5), aggregate, targets)


def test_targets_that_no_leaf_gives_anything_have_the_base_alone(isa):
    forest = listed_nodes(
        forests.listed([Leaf([(1, -2.0)]), Branch(0, "BRANCH_LEQ", 0.0, False, Leaf([]), Leaf([(0, 3.0)]))]), "target"
    )
    for aggregate in ("MIN", "MAX", "SUM"):
        made, _ = run(isa, forest, np.array([[-1], [1]], np.float32), aggregate, 3)
        np.testing.assert_array_equal(made, [[0, -1, 2], [3, -1, 2]])


def test_missing_values_take_the_branch_of_their_node(isa):
    x = rows(20)
    x[np.random.default_rng(2).random(x.shape) < 0.4] = np.nan
    for missing in (False, True):
        forest = grown(9, 4, missing=missing)
        assert forest.nans.any() == missing
        check(isa, forest, x)


def test_chunks_of_rows_and_blocks_of_trees(isa):
    walk = check(isa, grown(300, 3), rows(70))[0]
    assert walk.chunks == 3 * 3  # 32 rows each, 128 trees each


def test_one_row_gives_the_same_bits_as_many(isa):
    forest, x = grown(300, 4, targets=3, entries=3), rows(40)
    whole, _ = run(isa, forest, x, targets=3)
    for row in (0, 39):
        np.testing.assert_array_equal(run(isa, forest, x[row : row + 1], targets=3)[0][0], whole[row])


def test_forests_without_nodes_and_without_trees(isa):
    check(isa, listed_nodes(forests.listed([Leaf([(0, 2.0)]), Leaf([])]), "target"), rows(3))
    check(isa, listed_nodes(forests.listed([]), "target"), rows(3))


@pytest.mark.parametrize("mode", ["BRANCH_LT", "BRANCH_EQ", "BRANCH_GTE"])
def test_zero_is_told_from_what_is_next_to_it(isa, mode):
    """Threads may read numbers below the normal ones as 0, and must not take 0 for a number below it."""
    forest = listed_nodes(forests.listed([Branch(0, mode, 0.0, False, Leaf([(0, 1.0)]), Leaf([(0, 2.0)]))]), "target")
    check(isa, forest, np.array([[0.0], [-0.0], [SMALLEST], [-SMALLEST], [1], [-1]], np.float32))


def test_splits_in_float64_are_compared_with_float32(isa):
    """0.1 in float32 is above 0.1."""
    attrs = forests.ensemble([Branch(0, "BRANCH_LEQ", 0.1, False, Leaf([(0, 1.0)]), Leaf([(0, 2.0)]))], 1, np.float64)
    x = np.array([[0.1], [np.nextafter(np.float32(0.1), np.float32(0))]], np.float32)
    made, _ = run(isa, ensemble_nodes(attrs), x)
    np.testing.assert_array_equal(made, [[2], [1]])


def test_packed_size_is_known_before_packing():
    for targets, entries in ((1, 1), (5, 1), (5, 3)):
        forest = grown(9, 5, targets=targets, entries=entries)
        trees = Trees(forest, np.dtype(np.float64), targets, "add")
        assert max(trees.nodes().nbytes, trees.weights().nbytes) <= packed_bytes(forest, np.dtype(np.float64), targets)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    trees=st.lists(forests.branches(forests.single_leaves, members=forests.member_lists), min_size=1, max_size=10),
    given_rows=forests.rows,
    aggregate=st.sampled_from(list(COMBINE)),
)
def test_random_forests_are_walked_as_by_hand(isa, trees, given_rows, aggregate):
    forest = ensemble_nodes(forests.ensemble(trees))
    x = np.array(given_rows, np.float32)
    x[np.abs(x) < SMALLEST] = 0  # numbers below the normal ones may be read as 0
    made, _ = run(isa, forest, x, aggregate, forests.TARGETS)
    exact = forests.totals(trees, x, aggregate) + np.arange(forests.TARGETS)
    np.testing.assert_allclose(made, exact, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_serves_others(isa, data):
    like = None
    for _ in range(3):
        trees, depth, count = (data.draw(st.integers(1, most)) for most in (40, 5, 90))
        targets = data.draw(st.integers(2, 20))
        forest = grown(trees, depth, data.draw(st.integers(0, 99)), targets=targets, entries=2)
        kernels = check(isa, forest, rows(count), targets=targets, like=like)
        like = like or kernels
