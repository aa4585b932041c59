"""Forests from the attributes of ONNX's operators: what they compute, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import AttributeValueError
from kernels.forest import AGGREGATES
from kernels.forest_reading import ensemble_nodes, listed_nodes
from tests.kernels import forests
from tests.kernels.forests import Branch, Leaf

ANY = settings(max_examples=150, deadline=None)


@ANY
@given(
    st.lists(st.one_of(forests.leaves, forests.branches(forests.leaves)), min_size=1, max_size=4),
    forests.rows,
    st.sampled_from(AGGREGATES),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_listed_trees_are_walked_as_by_hand(trees, rows, aggregate, shuffled, dtype):
    forest, x = listed_nodes(forests.listed(trees, shuffled=shuffled), "target"), np.array(rows, dtype)
    forest.check("trees", forests.FEATURES, forests.TARGETS)
    made = forest.totals(x, aggregate, forests.TARGETS)
    wanted = forests.totals(_in_float32(trees), x, aggregate)
    np.testing.assert_allclose(made, wanted, rtol=1e-12, atol=1e-12)


@ANY
@given(
    st.lists(forests.branches(forests.single_leaves, members=forests.member_lists), min_size=1, max_size=4),
    forests.rows,
    st.sampled_from(AGGREGATES),
    st.sampled_from([np.float32, np.float64]),
)
def test_ensembles_are_walked_as_by_hand(trees, rows, aggregate, dtype):
    attrs = forests.ensemble(trees, dtype=np.float64)
    forest, x = ensemble_nodes(attrs), np.array(rows, np.float64).astype(dtype)
    forest.check("trees", forests.FEATURES, forests.TARGETS)
    np.testing.assert_allclose(
        forest.totals(x, aggregate, forests.TARGETS), forests.totals(trees, x, aggregate), rtol=1e-12, atol=1e-12
    )


def _in_float32(tree):
    """Return trees with splits and weights as a list of floats in a file holds them."""
    if isinstance(tree, list):
        return [_in_float32(each) for each in tree]
    if isinstance(tree, Leaf):
        return Leaf([(target, float(np.float32(weight))) for target, weight in tree.entries])
    split = float(np.float32(tree.split))
    return Branch(tree.feature, tree.mode, split, tree.missing, _in_float32(tree.true), _in_float32(tree.false))


def test_rows_are_walked_in_blocks():
    forest = listed_nodes(
        forests.listed([Leaf([(0, 2.0)]), Branch(0, "BRANCH_LT", 0.0, False, Leaf([(0, 1.0)]), Leaf([]))]), "target"
    )
    x = np.linspace(-1, 1, 100_001, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(forest.totals(x, "SUM", 1)[:, 0], 2.0 + (x[:, 0] < 0))


def test_nodes_may_share_a_child():
    attrs = forests.listed(
        [Branch(0, "BRANCH_EQ", 1.0, False, Leaf([(0, 1.0)]), Branch(0, "BRANCH_EQ", 2.0, False, Leaf([]), Leaf([(0, 3.0)])))]
    )
    attrs["nodes_truenodeids"] = (1, 0, 1, 0, 0)  # as LightGBM's sets are exported: several comparisons lead to one leaf
    forest = listed_nodes(attrs, "target")
    x = np.array([[1], [2], [3]], np.float32)
    np.testing.assert_array_equal(forest.totals(x, "SUM", 1), [[1], [1], [3]])


def test_large_sets_are_searched_in_few_steps():
    members = [float(value) for value in range(1000)]
    forest = ensemble_nodes(
        forests.ensemble([Branch(0, "BRANCH_MEMBER", 0.0, False, Leaf([(0, 1.0)]), Leaf([(0, 2.0)]), members)])
    )
    depth = np.zeros(len(forest.features), int)
    for node in reversed(range(len(depth))):
        depth[node] = 1 + max((depth[child] for child in forest.branches[node] if child >= 0), default=0)
    assert depth[0] <= 12
    x = np.array([[0], [0.5], [999], [1000], [-1]], np.float32)
    np.testing.assert_array_equal(forest.totals(x, "SUM", 1)[:, 0], [1, 2, 1, 2, 2])


STUMP = Branch(1, "BRANCH_LEQ", 0.5, False, Leaf([(0, 1.0)]), Leaf([(0, 2.0)]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nodes_treeids": (0, 0)}, r"'nodes_treeids' has 2 values, need 3"),
        ({"nodes_values": (0.5,)}, r"'nodes_values' has 1 values, need 3"),
        ({"nodes_values": (float("nan"), 0.0, 0.0)}, r"split of node 0 is nan"),
        ({"nodes_featureids": (-1, 0, 0)}, r"'nodes_featureids' has -1, need numbers from 0"),
        ({"nodes_featureids": (2**40, 0, 0)}, r"'nodes_featureids' has 1099511627776"),
        ({"nodes_featureids": ("a", 0, 0)}, r"'nodes_featureids' is"),
        ({"nodes_modes": ("BRANCH_LEQ", "LEAF", "TWIG")}, r"'nodes_modes'\[2\] is 'TWIG', need one of BRANCH_LEQ"),
        ({"nodes_modes": ("BRANCH_LEQ", "LEAF")}, r"'nodes_modes' has 2 values"),
        ({"nodes_truenodeids": (7, 0, 0)}, r"'nodes_truenodeids'\[0\] is node 7 of tree 0, need one that is listed"),
        ({"nodes_truenodeids": (0, 0, 0)}, r"node 0 is on a cycle or behind one"),
        ({"nodes_nodeids": (0, 1, 1)}, r"'nodes_nodeids'\[2\] is node 1 of tree 0 again"),
        ({"nodes_missing_value_tracks_true": (1,)}, r"'nodes_missing_value_tracks_true' has 1 values"),
        ({"target_nodeids": (0, 2)}, r"'target_nodeids'\[0\] is node 0 of tree 0, need a leaf"),
        ({"target_nodeids": (1, 9)}, r"'target_nodeids'\[1\] is node 9 of tree 0"),
        ({"target_treeids": (0, 3)}, r"'target_nodeids'\[1\] is node 2 of tree 3"),
        ({"target_treeids": (0,)}, r"'target_nodeids' has 2 values, need 1"),
        ({"target_ids": (0, -2)}, r"'target_ids' has -2"),
        ({"target_weights": (1.0,)}, r"'target_weights' has 1 values, need 2"),
        ({"target_weights_as_tensor": np.ones(2)}, r"'target_weights' and 'target_weights_as_tensor' are both given"),
        ({"target_weights": (), "target_weights_as_tensor": np.ones((2, 1))}, r"is float64\[2, 1\], need a vector"),
    ],
)
def test_hostile_lists_are_refused(change, says):
    with pytest.raises(AttributeValueError, match=says):
        listed_nodes({**forests.listed([STUMP]), **change}, "target")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nodes_truenodeids": (1,)}, r"'nodes_truenodeids'\[0\] is 1, need 0 to 0"),
        ({"nodes_falsenodeids": (-1,)}, r"'nodes_falsenodeids'\[0\] is -1"),
        ({"nodes_modes": np.array([9], np.uint8)}, r"'nodes_modes' has 9, need numbers from 0 to 6"),
        ({"tree_roots": (1,)}, r"'tree_roots' has 1 to 1, need 0 to 0"),
        ({"nodes_modes": np.array([6], np.uint8)}, r"'membership_values' has 0 sets"),
        (
            {"nodes_modes": np.array([6], np.uint8), "membership_values": np.array([np.nan], np.float32)},
            r"an empty set for node 0",
        ),
        ({"leaf_targetids": (0,)}, r"'leaf_targetids' has 1 values, need 2"),
        ({"nodes_trueleafs": (0,), "nodes_truenodeids": (0,)}, r"node 0 is on a cycle"),
    ],
)
def test_hostile_ensembles_are_refused(change, says):
    attrs = forests.ensemble([STUMP])
    if "nodes_trueleafs" not in change and "nodes_truenodeids" in change:
        change = {**change, "nodes_trueleafs": (0,)}
    with pytest.raises(AttributeValueError, match=says):
        ensemble_nodes({**attrs, **change})


def test_a_chain_of_a_million_nodes_is_read_and_one_out_of_order_refused():
    count = 1_000_000
    ids, none = np.arange(count), np.zeros(count, int)
    ends, zero = np.append(none[1:], 1), np.zeros(1, int)
    attrs = {
        "nodes_featureids": none, "nodes_splits": none.astype(np.float32), "nodes_modes": none.astype(np.uint8),
        "nodes_truenodeids": np.append(ids[1:], 0), "nodes_trueleafs": ends, "nodes_falsenodeids": none,
        "nodes_falseleafs": none + 1, "leaf_weights": np.ones(1, np.float32), "leaf_targetids": zero, "tree_roots": zero,
    }  # fmt: skip
    assert len(ensemble_nodes(dict(attrs)).features) == count
    back = {"nodes_truenodeids": np.append(0, ids[:-1]), "nodes_trueleafs": ends[::-1], "tree_roots": ids[-1:]}
    with pytest.raises(AttributeValueError, match="more than 4096 nodes in no order"):
        ensemble_nodes({**attrs, **back})
