"""Forests of decision trees as arrays, in one form for all the ways in which ONNX writes trees.

A node sends a row to its first branch where the row's feature is at most the node's split, and to its second one otherwise. A
branch that is 0 or more is another node, one below 0 is the leaf ~branch. Branches lead to later nodes only, so that every walk
ends. A leaf adds weights to some targets. `kernels.forest_reading` turns the other comparisons (<, >, ==, membership…) into this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import numpy as np

from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.spec import BOOL, Array, DType, Spec

Aggregate = Literal["AVERAGE", "SUM", "MIN", "MAX"]
AGGREGATES: tuple[Aggregate, ...] = ("AVERAGE", "SUM", "MIN", "MAX")  # in the order of their numbers in TreeEnsemble

F32, F64, I32 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32)
_WEIGHTS = (np.dtype(np.float16), F32, F64)
_DTYPES: tuple[tuple[DType, ...], ...] = ((I32,), (I32,), (F64,), (I32,), (BOOL,), (I32,), (I32,), _WEIGHTS)
BLOCK_WALKS = 1 << 16  # of one row through one tree, that are walked at once in numpy
WALK_BYTES = 160  # that numpy takes for each of them


class Forest(NamedTuple):
    """roots: a branch for each tree. features, splits (float64), nans: of each node; nans: whether NaN takes the first branch.

    branches: (nodes, 2). leaves: leaf i has the entries leaves[i] to leaves[i + 1] of targets and weights.
    """

    roots: Array
    features: Array
    splits: Array
    branches: Array
    nans: Array
    leaves: Array
    targets: Array
    weights: Array

    @classmethod
    def of(cls, specs: Sequence[Spec], subject: str) -> Self:
        """Return the forest that is the known value of these specs. Raises DataDependentError where one is unknown."""
        return cls(*(spec.known(f"{subject}: {name}") for name, spec in zip(cls._fields, specs, strict=True)))

    def check(self, subject: str, features: int, targets: int) -> None:
        """Raise DTypeError, ShapeError or AttributeValueError unless every walk over rows of that many features ends in a leaf,
        and every entry is of one of that many targets."""
        for name, array, dtypes in zip(self._fields, self, _DTYPES, strict=True):
            if array.dtype not in dtypes:
                raise DTypeError(f"{subject}: {name} are {array.dtype.name}, need {' or '.join(d.name for d in dtypes)}")
        nodes, entries = len(self.features) if self.features.ndim == 1 else 0, self.weights.size
        wanted = {"features": (nodes,), "splits": (nodes,), "branches": (nodes, 2), "nans": (nodes,), "weights": (entries,),
                  "targets": (entries,), "roots": (self.roots.size,), "leaves": (max(self.leaves.size, 1),)}  # fmt: skip
        for name, shape in wanted.items():
            if (found := getattr(self, name).shape) != shape:
                raise ShapeError(
                    f"{subject}: {name} are {list(found)}, need {list(shape)} for {nodes} nodes and {entries} entries"
                )
        starts = self.leaves
        if starts[0] != 0 or starts[-1] != entries or (starts[1:] < starts[:-1]).any():
            raise AttributeValueError(f"{subject}: leaves start at {_some(starts)}, need an order from 0 to {entries} entries")
        if np.isnan(self.splits).any():
            raise AttributeValueError(f"{subject}: the split of node {int(np.isnan(self.splits).argmax())} is nan, need numbers")
        self._check_ranges(subject, "features", self.features, 0, features)
        self._check_ranges(subject, "targets", self.targets, 0, targets)
        for name, branches in (("roots", self.roots), ("branches", self.branches)):
            self._check_ranges(subject, name, branches, 1 - len(starts), nodes)
        own = np.arange(nodes, dtype=I32)[:, None]
        if (backward := (self.branches >= 0) & (self.branches <= own)).any():
            node = int(np.argmax(backward.any(1)))
            raise AttributeValueError(
                f"{subject}: node {node} leads to {self.branches[node].tolist()}, need later nodes or leaves"
            )

    @staticmethod
    def _check_ranges(subject: str, name: str, values: Array, low: int, high: int) -> None:
        if values.size and not (low <= values.min() and values.max() < high):
            bad = values[(values < low) | (values >= high)].flat[0]
            raise AttributeValueError(f"{subject}: one of its {name} is {bad}, need {low} to {high - 1}")

    def walk(self, x: Array) -> Array:
        """Return the leaf in which each row of x (n, features) ends, in each tree: (n, trees)."""
        trees = len(self.roots)
        at = np.broadcast_to(self.roots, (len(x), trees)).reshape(-1).astype(np.int64)
        walking = np.flatnonzero(at >= 0)
        while walking.size:
            node = at[walking]
            value, split = x[walking // trees, self.features[node]], self.splits[node]
            first = (value <= split) | (np.isnan(value) & self.nans[node])
            reached = self.branches[node, np.where(first, 0, 1)]
            at[walking] = reached
            walking = walking[reached >= 0]
        return ~at.reshape(len(x), trees)

    def totals(self, x: Array, aggregate: Aggregate, targets: int) -> Array:
        """Return what the leaves of each row of x (n, features) give each target: (n, targets) float64, 0 where none does.

        The rows are walked in blocks, so that the memory beside the result does not grow with them.
        """
        made = np.zeros((len(x), targets))
        rows = max(BLOCK_WALKS // max(len(self.roots) * int(np.diff(self.leaves).max(initial=1)), 1), 1)
        for start in range(0, len(x), rows):
            made[start : start + rows] = self._block_totals(x[start : start + rows], aggregate, targets)
        return made

    def _block_totals(self, x: Array, aggregate: Aggregate, targets: int) -> Array:
        leaf = self.walk(x)
        counts = (self.leaves[leaf + 1] - self.leaves[leaf]).reshape(-1)
        firsts = np.repeat(self.leaves[leaf].reshape(-1) - np.cumsum(counts) + counts, counts)
        entry = np.arange(counts.sum()) + firsts
        row = np.repeat(np.arange(len(x)).repeat(leaf.shape[1]), counts)
        place, weights = row * targets + self.targets[entry], self.weights[entry].astype(F64)
        if aggregate in ("SUM", "AVERAGE"):
            total = np.bincount(place, weights, len(x) * targets)
            return (total / len(self.roots) if aggregate == "AVERAGE" else total).reshape(len(x), targets)
        total = np.full(len(x) * targets, np.nan)
        (np.fmin if aggregate == "MIN" else np.fmax).at(total, place, weights)
        return np.where(np.isnan(total), 0, total).reshape(len(x), targets)


def _some(values: Array) -> str:
    return f"{values[:4].tolist()}…" if values.size > 4 else str(values.tolist())
