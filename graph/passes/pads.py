"""Folding of a Pad into the padding of the Conv or pool behind it, where both give the same result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor
from kernels.spec import Array, Spec

_HOSTS = frozenset({"Conv", "AveragePool", "MaxPool"})


def fold_pads(editor: Editor) -> None:
    """Fold a Pad of spatial axes alone: with zeros into Conv and AveragePool, with -inf into MaxPool."""
    for name in [node.name for node in editor.graph.nodes if node.op in _HOSTS]:
        host = editor.nodes[name]
        pad = editor.sole_writer(host.inputs[0], host)
        if pad is None or pad.op != "Pad" or host.inputs.count(host.inputs[0]) != 1:
            continue
        spec = editor.spec(pad.inputs[0])
        amounts = None if spec is None else _amounts(editor, pad, spec)
        attrs = None if amounts is None else _folded(editor, host, pad, amounts)
        if attrs is not None:
            editor.merge(replace(host, inputs=(pad.inputs[0], *host.inputs[1:]), attrs=attrs), pad)


def _amounts(editor: Editor, pad: Node, spec: Spec) -> list[tuple[int, int]] | None:
    """Return (before, behind) of every spatial axis; None where they are unknown, negative, or of the batch or channel axis."""
    given = editor.constant(pad.inputs[1])
    if given is None or pad.attrs["mode"] != "constant":
        return None
    axes = list(range(spec.rank))
    if len(pad.inputs) > 3 and pad.inputs[3]:
        named = editor.constant(pad.inputs[3])
        if named is None:
            return None
        axes = [int(axis) % spec.rank for axis in named]
    amounts = [(0, 0)] * spec.rank
    for axis, before, after in zip(axes, given[: len(axes)], given[len(axes) :], strict=True):
        amounts[axis] = (int(before), int(after))
    if any(min(pair) < 0 for pair in amounts) or any(map(any, amounts[:2])):
        return None
    return amounts[2:]


def _folded(editor: Editor, host: Node, pad: Node, amounts: list[tuple[int, int]]) -> dict[str, object] | None:
    """Return the attributes of the host with the padding added to its own; None where results would differ."""
    rank = len(amounts)
    own = tuple(host.attrs["pads"] or (0,) * (2 * rank))
    if host.attrs["auto_pad"] not in ("NOTSET", "VALID") or len(own) != 2 * rank:
        return None
    own = own if host.attrs["auto_pad"] == "NOTSET" else (0,) * (2 * rank)
    pads = tuple(own[i] + amounts[i][0] for i in range(rank)) + tuple(own[rank + i] + amounts[i][1] for i in range(rank))
    attrs: dict[str, object] = {**host.attrs, "auto_pad": "NOTSET", "pads": pads}
    fill = _fill(editor, pad)
    if host.op == "Conv":
        return attrs if fill == 0 else None
    kernel, dilations = host.attrs["kernel_shape"], host.attrs["dilations"] or (1,) * rank
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if host.attrs["ceil_mode"] or any(pads[i] >= reach[i % rank] for i in range(2 * rank)):
        return None  # ceil_mode counts its own padding otherwise; a window of padding alone has no maximum
    if host.op == "MaxPool":
        return attrs if fill == -np.inf and not (len(host.outputs) > 1 and host.outputs[1]) else None
    if fill != 0 or (any(own) and not host.attrs["count_include_pad"]):
        return None
    return {**attrs, "count_include_pad": 1}


def _fill(editor: Editor, pad: Node) -> float | None:
    """Return the value that is padded with; None where it is not constant."""
    if len(pad.inputs) < 3 or not pad.inputs[2]:
        return 0.0
    value: Array | None = editor.constant(pad.inputs[2])
    return None if value is None else float(value.reshape(-1)[0])
