"""LSTM, GRU and RNN: one product for the inputs of all steps, then one kernel that goes through the steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np

from graph.ir import Node
from graph.native.facts import F32, Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Place, Storage, Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.direct import rows_image
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, aligned_copy
from kernels.native.families.conv import conv_tiles, emit_conv, pack_bias, pack_weights
from kernels.native.families.recurrent import (
    Cell,
    Columns,
    Recurrent,
    emit_recurrent,
    inner_bias,
    pack_recurrent,
    project_bias,
    project_weights,
    recurrent_tile,
)
from kernels.native.memory.view import View
from kernels.ops.recurrent import activation_expressions, check_lengths
from kernels.record import record
from kernels.spec import Array

_X, _W, _R, _B, _LENGTHS, _H, _C, _PEEPHOLES = range(8)  # positions of the inputs; each op has a part of them
_KINDS: Mapping[str, Literal["lstm", "gru", "rnn"]] = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a recurrent layer has no native form, or None."""
    floats = [value for position, value in enumerate(node.inputs) if position != _LENGTHS]
    if reason := facts.not_f32(*floats, *node.outputs):
        return reason
    if facts.computed(node.inputs[_W:_LENGTHS]):
        return "its weights are not constants"
    if len(set(activation_expressions(node.op, node.attrs))) > 1:
        return "its directions have different activations"
    return refuses_fused(node, facts) if node.outputs[0] else None


@record
class _Layer:
    """The sizes of a layer. batch_first: whether the first two dimensions of x are the batch and the steps, not the reverse."""

    columns: Columns
    steps: int
    batch: int
    directions: int
    batch_first: bool

    @staticmethod
    def of(b: Lowering, node: Node) -> _Layer:
        """Return the sizes of a node's layer."""
        batch_first, shape = bool(node.attrs["layout"]), b.spec(node.inputs[_X]).shape
        steps, batch = (shape[1], shape[0]) if batch_first else shape[:2]
        directions, _, hidden = b.spec(node.inputs[_R]).shape
        cell = _cell(b, node, steps)
        columns = Columns(cell, hidden, recurrent_tile(cell, batch, hidden, b.isa), b.isa.lanes)
        return _Layer(columns, steps, batch, directions, batch_first)

    def sequences(self, place: Viewed) -> Viewed:
        """Return a value that has steps as (steps, directions, batch, …)."""
        return place.under(place.view.transposed((1, 2, 0, 3))) if self.batch_first else place

    def states(self, place: Viewed) -> Viewed:
        """Return a value without steps as (directions, batch, hidden)."""
        return place.under(place.view.transposed((1, 0, 2))) if self.batch_first else place


def _cell(b: Lowering, node: Node, steps: int) -> Cell:
    lengths = optional_input(node, _LENGTHS)
    known = b.constants.get(lengths)
    return Cell(
        _KINDS[node.op],
        activation_expressions(node.op, node.attrs)[0],
        peepholes=bool(optional_input(node, _PEEPHOLES)),
        coupled=bool(node.attrs.get("input_forget", 0)),
        linear=bool(node.attrs.get("linear_before_reset", 0)),
        lengths=bool(lengths) and (known is None or bool((known != steps).any())),
    )


def lower(b: Lowering, node: Node) -> None:
    """Append the product of the inputs of all steps, and the call that goes through the steps."""
    layer = _Layer.of(b, node)
    columns, cell = layer.columns, layer.columns.cell
    places = {"projected": _project(b, node, layer), "h": _initial(b, node, _H, layer), "last_h": _last(b, node, 1, layer)}
    if cell.has_c:
        places |= {"c": _initial(b, node, _C, layer), "last_c": _last(b, node, 2, layer)}
    places["y"] = _results(b, node, layer)
    views = {name: place.view for name, place in places.items()}
    what = Recurrent(cell, **views, backwards_from=0 if node.attrs["direction"] == "reverse" else 1)
    r = b.constants[node.inputs[_R]]
    packed = b.packed.storage(r, ("recurrent", columns), partial(pack_recurrent, columns, r))
    given = {**places, "w": packed, **_extras(b, node, layer)}
    writes = [name for name in ("y", "last_h", "last_c", "fault") if name in given]
    b.calls.append(emit_recurrent(what, columns.tile, b.isa), given, writes)
    if node.outputs[0]:
        apply_fused(b, node, b.values.strided(node.outputs[0]))


def _project(b: Lowering, node: Node, layer: _Layer) -> Viewed:
    """Append the product of the inputs of all steps and their weights: (steps, directions, batch, columns)."""
    w, columns, bias = b.constants[node.inputs[_W]], layer.columns, b.constants.get(optional_input(node, _B))
    rows, inputs, outputs = layer.steps * layer.batch, w.shape[2], layer.directions * columns.count
    x = b.values.matrix(node.inputs[_X], inputs)
    conv = Conv(rows_image(rows, inputs, x.view.strides[0]), rows_image(rows, outputs, outputs))
    tile = conv_tiles(conv, b.isa)[0]
    key = (columns, tile.vectors)

    def pack() -> Array:
        return pack_weights(conv, tile, b.isa, project_weights(columns, w)[:, :, None, None])

    order = (layer.batch, layer.steps) if layer.batch_first else (layer.steps, layer.batch)
    made = Viewed.new(f"{node.name}/projected", (*order, layer.directions, columns.count), F32)
    places: dict[str, Place | Storage] = {"x": x, "w": b.packed.storage(w, ("projection", *key), pack), "y": made}
    if bias is not None:
        added = partial(project_bias, columns, bias)
        places["b"] = b.packed.storage(bias, ("projection", *key), lambda: pack_bias(conv, b.isa, added(), tile.vectors))
    b.calls.append(emit_conv(conv, tile, Epilogue(bias is not None), b.isa), places)
    return made.under(made.view.transposed((1, 2, 0, 3) if layer.batch_first else (0, 2, 1, 3)))


def _results(b: Lowering, node: Node, layer: _Layer) -> Viewed:
    """Return memory for the states of all steps: (steps, directions, batch, hidden). Where none is read, all share one place."""
    if node.outputs[0]:
        return layer.sequences(_new(b, node.outputs[0]))
    made = _unread(node, "y", layer)
    shape = (layer.steps, *made.view.shape)
    return made.under(View(shape, (0, *made.view.strides)))


def _last(b: Lowering, node: Node, position: int, layer: _Layer) -> Viewed:
    """Return memory for a last state: (directions, batch, hidden)."""
    value = node.outputs[position] if len(node.outputs) > position else ""
    return layer.states(_new(b, value)) if value else _unread(node, f"last{position}", layer)


def _unread(node: Node, what: str, layer: _Layer) -> Viewed:
    return Viewed.new(f"{node.name}/{what}", (layer.directions, layer.batch, layer.columns.hidden), F32)


def _new(b: Lowering, value: str) -> Viewed:
    """Return memory for a result whose last dimension lies side by side."""
    made = b.values.new(value)
    return made if made.view.strides[-1] == 1 else b.values.new_dense(value)


def _initial(b: Lowering, node: Node, position: int, layer: _Layer) -> Viewed:
    """Return an initial state: (directions, batch, hidden), zeros where there is none."""
    if value := optional_input(node, position):
        place = b.values.strided(value)
        return layer.states(place if place.view.strides[-1] == 1 else b.values.dense(value))
    hidden = layer.columns.hidden
    return Viewed(_zeros(b, hidden), View((layer.directions, layer.batch, hidden), (0, 0, 1)))


def _extras(b: Lowering, node: Node, layer: _Layer) -> dict[str, Place | Storage]:
    """Return the arguments that some cells have: peepholes, the inner bias, and lengths with the word to report them in."""
    columns, places = layer.columns, dict[str, Place | Storage]()
    if columns.cell.peepholes:
        places["p"] = b.values.dense(node.inputs[_PEEPHOLES])
    if columns.cell.linear:
        bias, key = b.constants.get(optional_input(node, _B)), ("inner", columns)
        if bias is None:
            places["inner"] = _zeros(b, layer.directions * (columns.count - columns.second))
        else:
            places["inner"] = b.packed.storage(bias, key, partial(inner_bias, columns, bias))
    if columns.cell.lengths:
        places["lengths"] = b.values.dense(node.inputs[_LENGTHS])
        places["fault"] = b.calls.watch_by(node, layer.steps, "sequence_lens", check_lengths)
    return places


def _zeros(b: Lowering, count: int) -> Storage:
    return b.packed.storage(None, ("zeros", count), lambda: aligned_copy(np.zeros(count, np.float32)))


RULES = dict.fromkeys(_KINDS, one_algorithm("recurrent", refuses, lower, wants="rows"))
