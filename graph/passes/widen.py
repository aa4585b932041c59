"""Computation of float16 and bfloat16 in float32, for which there are native kernels.

Every half between two ops becomes a float32, which is not rounded. Constants are converted once, graph inputs by one Cast each,
and graph outputs are rounded once. What stays as the file says (docs/numerics.md):

- A Cast from a wider type to float16 whose values may exceed 65504 makes infinities of them; it becomes a rounding of float32.
- A Cast to a half that is read by Casts back alone is a rounding that is meant, and stays one.
- Integers, bools and other results that jump where a half does are computed of rounded values.

A node stays in half precision where its op has no form for float32 of the same shapes, where its format itself counts, and where
only a run knows its shapes. Bodies of If, Loop and Scan stay, too. They read halves, which are rounded for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from graph.ir import CONTROL_FLOW, Node
from graph.passes.editor import Editor, origins
from graph.wide import widened
from kernels.errors import EdgewiseError
from kernels.half import is_half
from kernels.record import record
from kernels.registry import find
from kernels.size import surely_equal
from kernels.spec import BFLOAT16, BOOL, ELEMENT_CODES, FLOATS, INTS, DType, Spec

_F32 = np.dtype(np.float32)
_CASTS = frozenset({"Cast", "CastLike"})
_KEPT = frozenset({"BitCast", "QuantizeLinear"})  # one reads bits, the other divides in the precision of its scale
_SHAPES = frozenset({"Shape", "Size"})  # read no element

# A small difference of an input may be a whole one of the result, as with those that make integers
_JUMPS = frozenset({"Ceil", "Floor", "Hardmax", "Mod", "Round", "Shrink", "Sign", "ThresholdedRelu"})

_MOVES = frozenset(  # the result is elements of input 0
    ("CenterCropPad", "Compress", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
     "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze")
)  # fmt: skip
_EXACT = _MOVES | frozenset(  # the result is elements of the inputs, or their negatives, or whole numbers for them
    ("Abs", "Ceil", "Concat", "Floor", "GlobalMaxPool", "Hardmax", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax",
     "ReduceMin", "Relu", "Round", "Sign", "TopK", "Where")
)  # fmt: skip
_BOUNDED = frozenset(  # between -1 and 1
    ("Cos", "Erf", "HardSigmoid", "Hardmax", "Sigmoid", "Sin", "Softmax", "Softsign", "Tanh")
)


def widen_halves(editor: Editor) -> None:
    """Compute what is in half precision in float32; inputs and outputs of the graph keep their types."""
    widening = _Widening(editor)
    for node in editor.graph.nodes:
        widening.visit(node)


@record
class _Cast:
    """A Cast to a half. same: it changes no number. fits: its values need no rounding."""

    source: str
    same: bool
    fits: bool


class _Widening:
    """One pass over a graph, in order.

    Every half keeps its name and is rounded from its float32 by a Cast, for those who read halves; where nobody does, that Cast
    is dead.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._inputs = {port.name for port in editor.graph.inputs}
        self._wide: dict[str, str] = {}  # the float32 of a half, by its name
        self._casts: dict[str, _Cast] = {}  # by the halves that they make, those whose float32 nobody has read yet
        self._exact: set[str] = set()  # the halves whose float32 is that of the half exactly
        self._were_halves: set[str] = set()  # floats that Casts in the file make of halves

    def visit(self, node: Node) -> None:
        """Replace a node by one of float32, unless it has nothing to do with halves or has to stay."""
        halves = [value for value in (*node.inputs, *node.outputs) if self._is_half(value)]
        if not halves or node.op in CONTROL_FLOW or node.op in _KEPT or node.epilogue:
            return
        if any(self.editor.spec(value) is None for value in (*node.reads(), *node.writes())):
            return
        if node.op in _CASTS:
            self._convert(node)
        elif not self._grows(node) and find(node.op).deterministic:
            self._compute(node)

    def _dtype(self, value: str) -> DType | None:
        spec = self.editor.spec(value)
        return None if spec is None else spec.dtype

    def _is_half(self, value: str) -> bool:
        dtype = self._dtype(value) if value else None
        return dtype is not None and is_half(dtype)

    def _grows(self, node: Node) -> bool:
        """Whether it appends to a graph input and makes a graph output, such as keys of a decoder: these grow in place."""
        return node.op == "Concat" and node.inputs[0] in self._inputs and node.outputs[0] in self.editor.outputs

    # The float32 of a half

    def _single(self, half: str) -> str:
        """Return the float32 of a half. One that no node makes yet is converted, which is exact."""
        if half in self._casts:
            self._make_cast(half, self._casts.pop(half))
        if half not in self._wide:
            constant = self.editor.constant(half)
            if constant is not None:
                made = self.editor.add_constant(f"{half}/single", widened(constant))
            else:
                made = self._cast(half, f"{half}/single", _F32, self.editor.producer(half))
            self._know(half, made)
        return self._wide[half]

    def _rounded(self, half: str) -> str:
        """Return the float32 of a half as the half would hold it."""
        single = self._single(half)  # known by then whether it is exact
        return single if half in self._exact else self._round(single, f"{half}/rounded", half)

    def _round(self, single: str, hint: str, half: str) -> str:
        """Round a float32 to the type of a half, and return the result, a float32."""
        made, dtype = self.editor.fresh(hint), self._dtype(half)
        attrs = find("edgewise.RoundTo").bind({"to": ELEMENT_CODES[dtype or _F32]})
        source = self.editor.producer(half)
        self.editor.put(Node(made, "edgewise.RoundTo", (single,), (made,), attrs, origins=origins(source) if source else ()))
        return made

    def _cast(self, value: str, hint: str, dtype: DType, source: Node | None) -> str:
        made = self.editor.fresh(hint)
        self._put_cast(made, value, made, dtype, source)
        return made

    def _put_cast(self, name: str, value: str, output: str, dtype: DType, source: Node | None) -> None:
        attrs = find("Cast").bind({"to": ELEMENT_CODES[dtype]})
        self.editor.put(Node(name, "Cast", (value,), (output,), attrs, origins=origins(source) if source else ()))

    def _know(self, half: str, single: str) -> None:
        self._wide[half] = single
        self._exact.add(half)

    # Casts

    def _convert(self, node: Node) -> None:
        source, made = node.inputs[0], node.outputs[0]
        if self._is_half(made):
            self._to_half(source, made)
        elif source in self._wide or source in self._casts:
            self._from_wide(node, source, made)
        elif self._dtype(made) == _F32:  # the float32 of an input, or of what a node made that stays
            self._know(source, made)
            self._were_halves.add(made)

    def _from_wide(self, node: Node, source: str, made: str) -> None:
        """Convert to a type that is no half: to floats what was computed, to all others what the half would hold."""
        dtype = self._dtype(made) or _F32
        if dtype not in FLOATS:
            self.editor.put(replace(node, inputs=(self._rounded(source), *node.inputs[1:])))
        elif dtype != _F32:
            self.editor.put(replace(node, inputs=(self._single(source), *node.inputs[1:])))
        else:
            self.editor.put(replace(node, op="Identity", inputs=(self._single(source),), attrs=find("Identity").bind({})))
        self._were_halves.add(made)

    def _to_half(self, source: str, made: str) -> None:
        """Note how to make the float32 of a Cast to a half. The Cast stays, for those who read the half."""
        dtype, wanted = self._dtype(source) or _F32, self._dtype(made) or _F32
        if is_half(dtype) or dtype in (_F32, BOOL, *INTS):  # float64 would be rounded twice; others have kernels of their own
            same = dtype in (wanted, BOOL, np.int8, np.uint8)
            self._casts[made] = _Cast(source, same, same or (not self._is_meant(made) and self._fits(source, wanted)))

    def _make_cast(self, half: str, cast: _Cast) -> None:
        """Make the float32 of a half that a Cast makes."""
        dtype = self._dtype(cast.source) or _F32
        if is_half(dtype):
            single = self._single(cast.source)
        elif dtype == _F32:
            single = cast.source
        else:
            single = self._cast(cast.source, f"{half}/single", _F32, self.editor.producer(half))
        self._wide[half] = single if cast.fits else self._round(single, f"{half}/rounded", half)
        if not cast.fits or (cast.same and (cast.source in self._exact or not is_half(dtype))):
            self._exact.add(half)

    def _is_meant(self, half: str) -> bool:
        """Whether Casts to wider types alone read a half: its values are rounded for the sake of it."""
        readers = self.editor.readers(half)
        back = [node.op in _CASTS and not self._is_half(node.outputs[0]) and node.inputs[0] == half for node in readers]
        return bool(back) and all(back) and half not in self.editor.captured

    def _fits(self, value: str, wanted: DType) -> bool:
        """Whether no finite number of a value is too large for a half."""
        dtype = self._dtype(value)
        if wanted in (BFLOAT16, dtype) or dtype in (BOOL, np.int8, np.uint8, np.int16):
            return True
        while value not in self._were_halves:
            node = self.editor.producer(value)
            if node is None or node.op not in (_BOUNDED | _MOVES):
                return False
            if node.op in _BOUNDED:
                return True
            value = node.inputs[0]
        return True

    # Other nodes

    def _compute(self, node: Node) -> None:
        """Let a node compute in float32, where its op then makes the same shapes, and float32 in place of halves."""
        attrs = dict(node.attrs)
        if node.op == "ConstantOfShape" and attrs["value"] is not None:
            attrs["value"] = attrs["value"].astype(_F32)
        if node.op == "EyeLike" and attrs["dtype"] is not None:
            attrs["dtype"] = ELEMENT_CODES[_F32]
        if not self._has_single_form(node, attrs):
            return
        jumps = self._jumps(node)
        of_half = self._rounded if jumps else self._single
        inputs = tuple(of_half(value) if self._is_half(value) else value for value in node.inputs)
        exact = node.op in _EXACT and (jumps or all(value in self._exact for value in node.inputs if self._is_half(value)))
        made = {half: self.editor.fresh(f"{half}/single") for half in node.outputs if self._is_half(half)}
        self.editor.put(
            replace(node, inputs=inputs, outputs=tuple(made.get(value, value) for value in node.outputs), attrs=attrs)
        )
        for half, single in made.items():
            self._put_cast(self.editor.fresh(f"{half}/half"), single, half, self._dtype(half) or _F32, node)
            self._wide[half] = single
            if exact:
                self._exact.add(half)

    def _jumps(self, node: Node) -> bool:
        """Whether its results have to be those of halves: they jump, or are not floats."""
        read = [value for value in node.outputs if value and self.editor.is_read(value)]
        whole = any(self._dtype(value) not in FLOATS for value in read)
        return node.op in _JUMPS or (whole and node.op not in _SHAPES)

    def _has_single_form(self, node: Node, attrs: Mapping[str, Any]) -> bool:
        try:
            made = find(node.op).infer_specs([self._widened(value) for value in node.inputs], attrs)
        except EdgewiseError:
            return False
        wanted = [self._widened(value) for value in node.outputs]
        return len(made) >= len(wanted) and all(
            spec is None or (spec.dtype == found.dtype and surely_equal(spec.shape, found.shape))
            for spec, found in zip(wanted, made, strict=False)
        )

    def _widened(self, value: str) -> Spec | None:
        """Return the spec of a value once it is float32; None for an absent one."""
        spec = self.editor.spec(value) if value else None
        if spec is None or not is_half(spec.dtype):
            return spec
        return Spec(spec.shape, _F32, None if spec.value is None else spec.value.astype(_F32))
