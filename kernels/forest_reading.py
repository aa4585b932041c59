"""Forests from the attributes of ONNX's tree operators, which are hostile until checked, in the one form of `kernels.forest`.

Every comparison becomes one or more `x <= split`. `x < s` is `x <= the number before s`; `x >= s` and `x > s` are the opposites
of these, with the branches exchanged. `x == s`, `x != s` and membership in a set ask between which of the numbers s and before s
the feature lies: a small search tree in the place of the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.errors import AttributeValueError
from kernels.forest import Forest
from kernels.spec import Array
from kernels.upgrades import constant_of

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)
MODES: Mapping[str, int] = {
    "BRANCH_LEQ": LEQ, "BRANCH_LT": LT, "BRANCH_GTE": GTE, "BRANCH_GT": GT, "BRANCH_EQ": EQ, "BRANCH_NEQ": NEQ, "LEAF": LEAF,
}  # fmt: skip
MOST_ROUNDS = 4096  # nodes of one path of a forest whose nodes are not in order already
_MOST = 2**31 - 1
_SEARCHED = (EQ, NEQ, MEMBER)


class Nodes(NamedTuple):
    """The nodes of a forest as ONNX has them, checked in themselves.

    true, false: branches as `kernels.forest` has them. missing: whether NaN takes the true branch. members: the sets of nodes
    whose mode is MEMBER, by node.
    """

    features: Array
    splits: Array
    modes: Array
    true: Array
    false: Array
    missing: Array
    members: Mapping[int, Array]


class Leaves(NamedTuple):
    """As in `Forest`."""

    leaves: Array
    targets: Array
    weights: Array


def forest(subject: str, roots: Array, nodes: Nodes, leaves: Leaves) -> Forest:
    """Return the forest in one form. Raises AttributeValueError for cycles, and for splits that are no numbers."""
    if (bad := np.isnan(nodes.splits) & (nodes.modes != MEMBER)).any():
        raise AttributeValueError(f"{subject}: the split of node {int(np.argmax(bad))} is nan, need a number to compare with")
    roots, nodes = _in_order(subject, roots, nodes)
    nodes = nodes._replace(splits=nodes.splits.astype(np.float64))  # the number before a split then is right for rows of any type
    before = _before(nodes.splits)
    less, swapped = np.isin(nodes.modes, (LT, GTE)), np.isin(nodes.modes, (GTE, GT))
    splits = np.where(less, before, nodes.splits)
    first, second = np.where(swapped, nodes.false, nodes.true), np.where(swapped, nodes.true, nodes.false)
    nans = nodes.missing ^ swapped
    searched = np.flatnonzero(np.isin(nodes.modes, _SEARCHED))
    made = Forest(
        roots.astype(np.int32), nodes.features.astype(np.int32), splits, np.stack([first, second], 1).astype(np.int32), nans,
        leaves.leaves.astype(np.int32), leaves.targets.astype(np.int32), leaves.weights,
    )  # fmt: skip
    return _with_numbers(_with_searches(made, nodes, searched.tolist()) if searched.size else made)


def _with_numbers(made: Forest) -> Forest:
    """Return the forest without splits that are NaN: where no number takes the first branch, every number takes the other."""
    never = np.isnan(made.splits)
    if not never.any():
        return made
    branches = np.where(never[:, None], made.branches[:, ::-1], made.branches)
    return made._replace(splits=np.where(never, np.inf, made.splits), branches=branches, nans=made.nans ^ never)


def _before(splits: Array) -> Array:
    """Return the largest number below each split; NaN, which nothing is at most, for the least of all."""
    with np.errstate(all="ignore"):
        below = np.nextafter(splits, -np.inf)
    return np.asarray(np.where(splits == -np.inf, np.nan, below))


def _in_order(subject: str, roots: Array, nodes: Nodes) -> tuple[Array, Nodes]:
    """Return the same forest with branches that lead to later nodes only. Raises AttributeValueError where it has a cycle."""
    count = len(nodes.features)
    own = np.arange(count)
    if not ((nodes.true >= 0) & (nodes.true <= own) | (nodes.false >= 0) & (nodes.false <= own)).any():
        return roots, nodes
    branches = np.stack([nodes.true, nodes.false], 1)
    waits = np.bincount(branches[branches >= 0], minlength=count)
    ready = np.flatnonzero(waits == 0)
    taken: list[Array] = []
    while ready.size:
        if len(taken) == MOST_ROUNDS:
            raise AttributeValueError(
                f"{subject}: a path has more than {MOST_ROUNDS} nodes in no order, need parents before children"
            )
        taken.append(ready)
        reached = branches[ready]
        after, times = np.unique(reached[reached >= 0], return_counts=True)
        waits[after] -= times
        ready = after[waits[after] == 0]
    order = np.concatenate([*taken, own[:0]])
    if len(order) < count:
        node = int(np.argmax(waits > 0))
        raise AttributeValueError(f"{subject}: node {node} is on a cycle or behind one, need trees, whose walks end")
    place = np.empty(count, np.int64)
    place[order] = own

    def moved(branch: Array) -> Array:
        return np.where(branch >= 0, place[np.maximum(branch, 0)], branch)

    members = {int(place[node]): values for node, values in nodes.members.items()}
    branch = [moved(each[order]) for each in (nodes.true, nodes.false)]
    features, splits, modes, missing = (each[order] for each in (nodes.features, nodes.splits, nodes.modes, nodes.missing))
    return moved(roots), Nodes(features, splits, modes, branch[0], branch[1], missing, members)


class _Search:
    """The search tree in the place of a node that asks whether a feature is one of some values."""

    def __init__(self, first_node: int, outcomes: tuple[int, int], nan_interval: int) -> None:
        self.splits: list[Any] = []
        self.branches: list[tuple[int, int]] = []
        self.nans: list[bool] = []
        self._first_node, self._outcomes, self._nan_interval = first_node, outcomes, nan_interval

    def add(self, bounds: Array, low: int, high: int) -> int:
        """Add the search for the interval between bounds low to high that holds a number; those of odd number are values."""
        if low == high:
            return self._outcomes[low % 2]
        middle, at = (low + high) // 2, len(self.splits)
        self.splits.append(bounds[middle])
        self.branches.append((0, 0))
        self.nans.append(self._nan_interval <= middle)
        self.branches[at] = self.add(bounds, low, middle), self.add(bounds, middle + 1, high)
        return self._first_node + at


def _with_searches(made: Forest, nodes: Nodes, searched: Sequence[int]) -> Forest:
    """Return the forest with search trees in the place of nodes that ask for equality."""
    values = {node: np.unique(nodes.members.get(node, nodes.splits[node : node + 1]).astype(np.float64)) for node in searched}
    extra = np.zeros(len(nodes.features), np.int64)
    extra[list(values)] = [2 * len(each) - 1 for each in values.values()]  # a search has two nodes for each value
    place = np.arange(len(extra)) + np.cumsum(extra) - extra
    total = len(extra) + int(extra.sum())
    _at_most("nodes", total)

    def moved(branches: Array) -> Array:
        return np.where(branches >= 0, place[np.maximum(branches, 0)], branches).astype(np.int32)

    def spread(array: Array) -> Array:
        wide = np.zeros((total, *array.shape[1:]), array.dtype)
        wide[place] = array
        return wide

    features = np.repeat(made.features, extra + 1)
    splits, branches, nans = spread(made.splits), spread(moved(made.branches)), spread(made.nans)
    for node, known in values.items():
        inverted, missing, first = nodes.modes[node] == NEQ, bool(nodes.missing[node]), int(place[node])
        bounds = np.stack([_before(known), known], 1).reshape(-1)
        no, yes = (int(each) for each in branches[first][::-1])
        outcomes = (yes, no) if inverted else (no, yes)
        search = _Search(first, outcomes, 0 if inverted or not missing else 1)  # NaN differs from everything
        search.add(bounds, 0, len(bounds))
        end = first + len(search.splits)
        splits[first:end], branches[first:end], nans[first:end] = search.splits, search.branches, search.nans
    return made._replace(roots=moved(made.roots), features=features, splits=splits, branches=branches, nans=nans)


# Attributes


def numbers(attrs: dict[str, Any], name: str, dtype: str, length: int | None = None, default: Array | None = None) -> Array:
    """Take an attribute as a vector of numbers. length: that it must have. default: where it is absent or empty.

    Raises AttributeValueError where it is missing, or holds anything else.
    """
    value = attrs.pop(name, ())
    array = value if isinstance(value, np.ndarray) else constant_of(name, value, dtype).reshape(-1)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise AttributeValueError(f"attribute {name!r} is {array.dtype.name}{list(array.shape)}, need a vector of numbers")
    if default is not None and not array.size:
        return default
    if length is not None and array.size != length:
        raise AttributeValueError(f"attribute {name!r} has {array.size} values, need {length}")
    return array


def either(attrs: dict[str, Any], name: str, length: int | None = None, default: Array | None = None) -> Array:
    """Take a vector of floats that is given as a list, or under another name as a tensor. Raises AttributeValueError for both."""
    listed, tensor = attrs.get(name, ()), attrs.get(f"{name}_as_tensor")
    if tensor is None:
        attrs.pop(f"{name}_as_tensor", None)
        return numbers(attrs, name, "float32", length, default)
    if isinstance(listed, np.ndarray) or listed != ():
        raise AttributeValueError(f"attributes {name!r} and '{name}_as_tensor' are both given, need one")
    attrs.pop(name, None)
    return numbers(attrs, f"{name}_as_tensor", "float32", length, default)


def listed_nodes(attrs: dict[str, Any], entries: str) -> Forest:
    """Take the attributes of TreeEnsembleClassifier ("class") or TreeEnsembleRegressor ("target"): ids of trees and their nodes.

    Raises AttributeValueError naming the attribute, and the tree and node where it concerns one.
    """
    ids = numbers(attrs, "nodes_nodeids", "int64")
    count = len(ids)
    _at_most("nodes", count)
    trees = numbers(attrs, "nodes_treeids", "int64", count)
    modes = _modes(attrs, count)
    for name in ("nodes_hitrates", "nodes_hitrates_as_tensor"):  # they say how often rows come by
        attrs.pop(name, None)
    splits = either(attrs, "nodes_values", count)
    features = numbers(attrs, "nodes_featureids", "int64", count)
    missing = numbers(attrs, "nodes_missing_value_tracks_true", "int64", count, np.zeros(count, np.int64)) != 0
    find = _Finder(trees, ids)
    leaf = modes == LEAF
    branch = np.where(leaf, ~(np.cumsum(leaf) - 1), np.cumsum(~leaf) - 1)  # of each listed node
    inner = np.flatnonzero(~leaf)
    to = [branch[find("nodes_" + name, trees[inner], numbers(attrs, "nodes_" + name, "int64", count)[inner])]
          for name in ("truenodeids", "falsenodeids")]  # fmt: skip
    nodes = Nodes(features[inner], splits[inner], modes[inner], to[0], to[1], missing[inner], {})
    where = find(
        f"{entries}_nodeids", numbers(attrs, f"{entries}_treeids", "int64"), numbers(attrs, f"{entries}_nodeids", "int64")
    )
    if not leaf[where].all():
        at = int(np.argmax(~leaf[where]))
        raise AttributeValueError(
            f"attribute '{entries}_nodeids'[{at}] is node {ids[where[at]]} of tree {trees[where[at]]}, need a leaf"
        )
    targets = numbers(attrs, f"{entries}_ids", "int64", len(where))
    weights = either(attrs, f"{entries}_weights", len(where))
    for name, values in (("nodes_featureids", nodes.features), (f"{entries}_ids", targets)):
        _check_range(name, values)
    of_leaf = ~branch[where]
    order = np.argsort(of_leaf, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(of_leaf, minlength=int(leaf.sum())))])
    first_of_tree = np.sort(np.unique(trees, return_index=True)[1])
    return forest("trees", branch[first_of_tree], nodes, Leaves(starts, targets[order], weights[order]))


def ensemble_nodes(attrs: dict[str, Any]) -> Forest:
    """Take the attributes of TreeEnsemble: nodes and leaves by number. Raises AttributeValueError naming the attribute."""
    features = numbers(attrs, "nodes_featureids", "int64")
    count = len(features)
    _at_most("nodes", count)
    _check_range("nodes_featureids", features)
    splits = numbers(attrs, "nodes_splits", "float32", count)
    modes = numbers(attrs, "nodes_modes", "int64", count).astype(np.int64)
    if modes.size and not (modes.min() >= LEQ and modes.max() <= MEMBER):
        raise AttributeValueError(f"attribute 'nodes_modes' has {modes.max()}, need numbers from {LEQ} to {MEMBER}")
    attrs.pop("nodes_hitrates", None)
    missing = numbers(attrs, "nodes_missing_value_tracks_true", "int64", count, np.zeros(count, np.int64)) != 0
    weights = numbers(attrs, "leaf_weights", "float32")
    targets = numbers(attrs, "leaf_targetids", "int64", len(weights))
    _check_range("leaf_targetids", targets)
    branches = []
    for side in ("true", "false"):
        ids, leafs = (numbers(attrs, f"nodes_{side}{kind}", "int64", count) for kind in ("nodeids", "leafs"))
        limit = np.where(leafs != 0, len(weights), count)
        if (bad := (ids < 0) | (ids >= limit)).any():
            at = int(np.argmax(bad))
            raise AttributeValueError(f"attribute 'nodes_{side}nodeids'[{at}] is {ids[at]}, need 0 to {limit[at] - 1}")
        branches.append(np.where(leafs != 0, ~ids, ids))
    roots = numbers(attrs, "tree_roots", "int64")
    if roots.size and not (roots.min() >= 0 and roots.max() < count):
        raise AttributeValueError(f"attribute 'tree_roots' has {roots.min()} to {roots.max()}, need 0 to {count - 1}")
    members = _members(numbers(attrs, "membership_values", "float32"), np.flatnonzero(modes == MEMBER).tolist())
    nodes = Nodes(features, splits, modes, branches[0], branches[1], missing, members)
    return forest("trees", roots, nodes, Leaves(np.arange(len(weights) + 1), targets, weights))


def _members(values: Array, nodes: Sequence[int]) -> dict[int, Array]:
    """Return the set of each node: the values up to the next NaN."""
    ends = np.flatnonzero(np.isnan(values))
    if len(ends) != len(nodes):
        raise AttributeValueError(
            f"attribute 'membership_values' has {len(ends)} sets that a nan ends, need one for {len(nodes)} nodes"
        )
    found = dict(zip(nodes, np.split(values, ends + 1), strict=False))
    if empty := [node for node, each in found.items() if len(each) < 2]:
        raise AttributeValueError(f"attribute 'membership_values' has an empty set for node {empty[0]}, need a value or more")
    return {node: each[:-1] for node, each in found.items()}


def _modes(attrs: dict[str, Any], count: int) -> Array:
    value = attrs.pop("nodes_modes", ())
    names = value if isinstance(value, tuple | list) else (value,)
    if len(names) != count:
        raise AttributeValueError(f"attribute 'nodes_modes' has {len(names)} values, need {count}")
    try:
        return np.fromiter(map(MODES.__getitem__, names), np.int64, count)
    except (KeyError, TypeError):
        at = next(at for at, name in enumerate(names) if not isinstance(name, str) or name not in MODES)
        raise AttributeValueError(
            f"attribute 'nodes_modes'[{at}] is {str(names[at])[:40]!r}, need one of {', '.join(MODES)}"
        ) from None


class _Finder:
    """Finds listed nodes by the ids of tree and node. Raises AttributeValueError where two nodes have the same."""

    def __init__(self, trees: Array, ids: Array) -> None:
        self._trees, self._ids = np.unique(trees), np.unique(ids)
        keys = self._keys(trees, ids)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        if (twice := self._sorted[1:] == self._sorted[:-1]).any():
            at = self._order[int(np.argmax(twice)) + 1]
            raise AttributeValueError(
                f"attribute 'nodes_nodeids'[{at}] is node {ids[at]} of tree {trees[at]} again, need each once"
            )

    def _keys(self, trees: Array, ids: Array) -> Array:
        return np.searchsorted(self._trees, trees) * len(self._ids) + np.searchsorted(self._ids, ids)

    def __call__(self, name: str, trees: Array, ids: Array) -> Array:
        """Return the positions of nodes. name: of the attribute that they are from."""
        if len(trees) != len(ids):
            raise AttributeValueError(f"attribute {name!r} has {len(ids)} values, need {len(trees)}")
        known = np.isin(trees, self._trees) & np.isin(ids, self._ids)
        at = np.searchsorted(self._sorted, self._keys(trees, ids))
        at = np.minimum(at, max(len(self._sorted) - 1, 0))
        if len(ids) and self._sorted.size:
            known &= self._sorted[at] == self._keys(trees, ids)
        if not known.all():
            bad = int(np.argmin(known))
            raise AttributeValueError(
                f"attribute {name!r}[{bad}] is node {ids[bad]} of tree {trees[bad]}, need one that is listed"
            )
        return self._order[at]


def _check_range(name: str, values: Array) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= _MOST):
        bad = values[(values < 0) | (values > _MOST)].flat[0]
        raise AttributeValueError(f"attribute {name!r} has {bad}, need numbers from 0 to {_MOST}")


def _at_most(what: str, count: int) -> None:
    if count > _MOST:
        raise AttributeValueError(f"trees: {count} {what}, need at most {_MOST}")
