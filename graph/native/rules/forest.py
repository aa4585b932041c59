"""Forests of decision trees whose arrays are constants: one call walks the trees, another adds up what blocks of them gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from graph.ir import Node
from graph.native.facts import F32, F64, Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Storage
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.expression import INT32
from kernels.forest import Forest
from kernels.native.families.forest import MOST_BYTES, Combine, Total, Trees, Walk, emit_total, emit_walk, packed_bytes
from kernels.native.memory.buffers import aligned
from kernels.spec import Array, DType

_COMBINE: Mapping[str, Combine] = {"SUM": "add", "AVERAGE": "add", "MIN": "minnum", "MAX": "maxnum"}
BYTES = np.dtype(np.uint8)
_FOREST = slice(1, 1 + len(Forest._fields))
_MOST_GROWTH = 16  # times the entries of leaves that leaves with a weight for each target may have, beyond _FREE_WEIGHTS
_FREE_WEIGHTS = 1 << 22


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a forest has no native form, or None."""
    x = facts.spec(node.inputs[0])
    if x.dtype not in (F32, F64):
        return f"x is {x}, need float32 or float64"
    base = optional_input(node, _FOREST.stop)
    if facts.computed([*node.inputs[_FOREST], base]):
        return "its trees are not constants"
    if node.attrs["post_transform"] != "NONE":
        return f"its scores are transformed by {node.attrs['post_transform']}"
    forest, targets = _forest(node, facts.constants), node.attrs["n_targets"]
    nbytes = packed_bytes(forest, x.dtype, targets)
    if nbytes > MOST_BYTES or (len(forest.leaves) * targets > max(_FREE_WEIGHTS, _MOST_GROWTH * forest.weights.size)):
        return f"its trees take {nbytes} bytes with {targets} weights a leaf, too many for offsets or for so few entries"
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Append the calls of the walk and of the sums, and of what is fused behind them."""
    x, y = b.values.dense(node.inputs[0]), b.values.new_dense(node.outputs[0])
    rows, targets = b.spec(node.outputs[0]).shape
    forest, combine, dtype = _forest(node, b.constants), _COMBINE[node.attrs["aggregate_function"]], x.storage.dtype
    trees = Trees(forest, dtype, targets, combine)
    made: dict[str, tuple[Callable[[], Array], DType]] = {
        "nodes": (trees.nodes, BYTES),
        "roots": (trees.roots, INT32),
        "weights": (trees.weights, trees.weight_dtype),
        "targets": (trees.targets, INT32),
    }
    key = (dtype, combine, *map(id, forest))  # the arrays of a graph live as long as its segments
    places = {name: b.packed.storage(None, (name, *key), *packing) for name, packing in made.items()}
    what = Walk(rows, x.view.shape[-1], targets, trees.groups, dtype, trees.weight_dtype, trees.layout, combine, trees.nans)
    part = Storage(f"{node.name}/parts", what.blocks * rows * targets, F64)
    b.calls.append(emit_walk(what, b.isa), {"x": x, **places, "y": part})
    divisor = len(forest.roots) if node.attrs["aggregate_function"] == "AVERAGE" else 1
    base = b.constants.get(optional_input(node, _FOREST.stop))
    added = b.packed.storage(base, ("base", divisor, targets), partial(_base, divisor, base, targets), F64)
    total = Total(rows, targets, what.blocks, y.storage.dtype, combine)
    b.calls.append(emit_total(total, b.isa), {"x": part, "base": added, "y": y})
    apply_fused(b, node, y)


def _forest(node: Node, constants: Mapping[str, Array]) -> Forest:
    return Forest(*(constants[name] for name in node.inputs[_FOREST]))


def _base(divisor: int, base: Array | None, targets: int) -> Array:
    memory = aligned(8 * (targets + 1)).view(np.float64)
    memory[0], memory[1:] = divisor, 0 if base is None else base
    return memory


_RULE = one_algorithm("forest", refuses, lower, wants="rows")
RULES = {"ai.onnx.ml.TreeEnsemble": _RULE, "ai.onnx.ml.TreeEnsembleRegressor": _RULE}
