"""Random forests as ONNX writes them, and what they compute, by a plain walk in float64 that shares nothing with the product."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
VALUES = (-math.inf, -1.5, -1e-42, -0.0, 0.0, 1e-42, 0.5, 1.5, 2.0, math.inf)  # of splits and features, so that they often meet
FEATURES, TARGETS = 3, 3


@dataclass
class Leaf:
    """entries: (target, weight)."""

    entries: list[tuple[int, float]]


@dataclass
class Branch:
    """A node that compares a feature. members: of a node that asks for membership; then there is no split."""

    feature: int
    mode: str
    split: float
    missing: bool
    true: Any
    false: Any
    members: list[float] = field(default_factory=list)

    def takes(self, x: float) -> bool:
        """Whether a number takes the true branch."""
        if self.missing and math.isnan(x):
            return True
        if self.mode == "BRANCH_MEMBER":
            return x in self.members
        compared = {
            "BRANCH_LEQ": x <= self.split,
            "BRANCH_LT": x < self.split,
            "BRANCH_GTE": x >= self.split,
            "BRANCH_GT": x > self.split,
            "BRANCH_EQ": x == self.split,
            "BRANCH_NEQ": x != self.split,
        }
        return compared[self.mode]


def walk(tree: Leaf | Branch, row: Any) -> Leaf:
    """Return the leaf in which a row ends."""
    while isinstance(tree, Branch):
        tree = tree.true if tree.takes(float(row[tree.feature])) else tree.false
    return tree


def totals(trees: list[Leaf | Branch], x: Any, aggregate: str, targets: int = TARGETS) -> Any:
    """Return (rows, targets) in float64; 0 for targets that no leaf gives anything."""
    made = np.zeros((len(x), targets))
    for at, row in enumerate(x):
        given: list[list[float]] = [[] for _ in range(targets)]
        for tree in trees:
            for target, weight in walk(tree, row).entries:
                given[target].append(weight)
        combine = {"SUM": math.fsum, "AVERAGE": lambda w: math.fsum(w) / len(trees), "MIN": min, "MAX": max}[aggregate]
        made[at] = [combine(weights) if weights else 0.0 for weights in given]
    return made


def listed(trees: list[Leaf | Branch], prefix: str = "target", *, shuffled: bool = False) -> dict[str, Any]:
    """Return trees as the attributes of TreeEnsembleRegressor or TreeEnsembleClassifier.

    shuffled: list the nodes of each tree with their children first, but for the root, which is first in any case.
    """
    names = ("treeids", "nodeids", "featureids", "values", "modes", "missing_value_tracks_true", "truenodeids", "falsenodeids")
    columns: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    entries: dict[str, list[Any]] = {f"{prefix}_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(trees):
        rows: list[tuple[Any, ...]] = []
        _list(tree, number, rows, entries, prefix)
        rows.sort(key=lambda row: row[1])
        for row in [rows[0], *reversed(rows[1:])] if shuffled else rows:
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return {name: tuple(column) for name, column in (columns | entries).items()}


def _list(tree: Leaf | Branch, number: int, rows: list[tuple[Any, ...]], entries: dict[str, list[Any]], prefix: str) -> int:
    node = len(rows)
    rows.append((number, node, 0, 0.0, "LEAF", 0, 0, 0))
    if isinstance(tree, Leaf):
        for target, weight in tree.entries:
            for name, value in (("treeids", number), ("nodeids", node), ("ids", target), ("weights", weight)):
                entries[f"{prefix}_{name}"].append(value)
        return node
    true, false = (_list(child, number, rows, entries, prefix) for child in (tree.true, tree.false))
    rows[node] = (number, node, tree.feature, tree.split, tree.mode, int(tree.missing), true, false)
    return node


def ensemble(trees: list[Branch], targets: int = TARGETS, dtype: Any = np.float32) -> dict[str, Any]:
    """Return trees whose leaves have one entry each as the attributes of TreeEnsemble."""
    codes = {mode: code for code, mode in enumerate((*MODES, "BRANCH_MEMBER"))}
    names = (
        "featureids",
        "splits",
        "modes",
        "missing_value_tracks_true",
        "truenodeids",
        "trueleafs",
        "falsenodeids",
        "falseleafs",
    )
    rows: list[list[Any]] = []
    leaves: list[tuple[int, float]] = []
    members: list[float] = []

    def add(tree: Leaf | Branch) -> tuple[int, int]:
        if isinstance(tree, Leaf):
            leaves.append(tree.entries[0])
            return len(leaves) - 1, 1
        at = len(rows)
        rows.append([tree.feature, tree.split, codes[tree.mode], int(tree.missing)])
        if tree.members:
            members.extend([*tree.members, math.nan])
        true, false = add(tree.true), add(tree.false)
        rows[at] += [*true, *false]
        return at, 0

    roots = tuple(add(tree)[0] for tree in trees)
    made: dict[str, Any] = {f"nodes_{name}": tuple(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    made["nodes_splits"], made["nodes_modes"] = np.array(made["nodes_splits"], dtype), np.array(made["nodes_modes"], np.uint8)
    made["leaf_targetids"] = tuple(target for target, _ in leaves)
    made["leaf_weights"] = np.array([weight for _, weight in leaves], dtype)
    made |= {"membership_values": np.array(members, dtype)} if members else {}
    return made | {"tree_roots": roots, "n_targets": targets}


_weights = st.floats(-8, 8, width=16)
_entries = st.lists(st.tuples(st.integers(0, TARGETS - 1), _weights), max_size=3, unique_by=lambda entry: entry[0])
single_leaves = st.builds(Leaf, st.lists(st.tuples(st.integers(0, TARGETS - 1), _weights), min_size=1, max_size=1))
leaves = st.builds(Leaf, _entries)


def branches(leaf: Any, modes: Any = MODES, members: Any = None) -> Any:
    """Return a strategy for trees of at least one branch."""

    def wrapped(children: Any) -> Any:
        compared = st.builds(
            Branch,
            st.integers(0, FEATURES - 1),
            st.sampled_from(modes),
            st.sampled_from(VALUES),
            st.booleans(),
            children,
            children,
        )
        if members is None:
            return compared
        asked = st.builds(
            Branch,
            st.integers(0, FEATURES - 1),
            st.just("BRANCH_MEMBER"),
            st.just(0.0),
            st.booleans(),
            children,
            children,
            members,
        )
        return st.one_of(compared, asked)

    return wrapped(st.recursive(leaf, wrapped, max_leaves=12))


member_lists = st.lists(st.sampled_from(VALUES[1:-1]), min_size=1, max_size=5)
rows = st.lists(st.tuples(*[st.sampled_from((*VALUES, math.nan, 0.75))] * FEATURES), min_size=1, max_size=9)
