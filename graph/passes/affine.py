"""Folding of scales and shifts by constants per channel into the weight and bias of the convolution or Gemm in front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor
from kernels.record import record
from kernels.spec import FLOATS, Array, Spec

SHARED_WEIGHT_BYTES = 1 << 20  # a larger weight that several nodes read is not copied for one of them
_HOSTS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


@record
class Affine:
    """The function y · scale + shift, with one float64 of each per output channel."""

    scale: Array
    shift: Array


def fold_scales_and_shifts(editor: Editor) -> None:
    """Fold Add, Sub, Mul and Div of a constant per channel, or of one number, into the convolution or Gemm in front."""
    for name in [node.name for node in editor.graph.nodes if node.op in _ARITHMETIC]:
        node = editor.nodes[name]
        index = 0 if editor.constant(node.inputs[1]) is not None else 1
        host = editor.sole_writer(node.inputs[index], node)
        if host is None or node.epilogue:
            continue
        affine = _read(editor, node, index, channels(editor, host))
        if affine is not None:
            absorb(editor, host, node, affine)


def channels(editor: Editor, host: Node) -> int:
    """Return the output channels of a convolution or Gemm whose weight is a constant; 0 for any other node."""
    weight = editor.constant(host.inputs[1]) if host.op in _HOSTS else None
    if weight is None or weight.dtype not in FLOATS:
        return 0
    if host.op == "ConvTranspose":
        return int(weight.shape[1]) * int(host.attrs["group"])
    return int(weight.shape[0 if host.op == "Conv" or host.attrs["transB"] else 1])


def _factor(host: Node, weight: Array, scale: Array) -> Array:
    """Shape the scale of each output channel so that it broadcasts to the weight."""
    if host.op == "ConvTranspose":  # (inputs, outputs of a group, …): the inputs of a group share its outputs' scales
        each = np.repeat(scale.reshape(host.attrs["group"], -1), weight.shape[0] // host.attrs["group"], axis=0)
        return each.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    axis = 0 if host.op == "Conv" or host.attrs["transB"] else 1
    return scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def absorb(editor: Editor, host: Node, node: Node, affine: Affine) -> bool:
    """Make `host` compute the result of `node`, which applies `affine` to it. False where bias or weight do not allow it."""
    before, after = editor.specs.get(host.outputs[0]), editor.specs.get(node.outputs[0])
    weight = editor.constant(host.inputs[1])
    if before is None or before != after or weight is None:
        return False
    if len(editor.readers(host.inputs[1])) > 1 and weight.nbytes > SHARED_WEIGHT_BYTES:
        return False
    bias = _bias(editor, host, len(affine.scale))
    if bias is None:
        return False
    inputs = [host.inputs[0], host.inputs[1]]
    if (affine.scale != 1).any():
        scaled = weight * _factor(host, weight, affine.scale)
        inputs[1] = editor.add_constant(f"{host.name}/weight", scaled.astype(weight.dtype))
    shifted = bias * affine.scale + affine.shift
    inputs.append(editor.add_constant(f"{host.name}/bias", shifted.astype(weight.dtype)))
    attrs = {**host.attrs, "beta": 1.0} if host.op == "Gemm" else host.attrs
    editor.merge(replace(host, inputs=tuple(inputs), outputs=(node.outputs[0],), attrs=attrs), node)
    return True


def _bias(editor: Editor, host: Node, count: int) -> Array | None:
    """Return the bias per channel in float64, zeros without one; None where it is not constant or differs between rows."""
    if len(host.inputs) < 3 or not host.inputs[2]:
        return np.zeros(count)
    bias = editor.constant(host.inputs[2])
    if bias is None or (bias.ndim > 1 and bias.shape[0] != 1) or bias.ndim > 2:
        return None
    beta = host.attrs["beta"] if host.op == "Gemm" else 1.0
    return beta * np.broadcast_to(bias.astype(np.float64).reshape(-1), (count,))


def _read(editor: Editor, node: Node, index: int, count: int) -> Affine | None:
    """Read Add, Sub, Mul or Div as an affine function of its input `index`; None unless the other one is constant per channel."""
    spec = editor.specs.get(node.outputs[0])
    constant = editor.constant(node.inputs[1 - index])
    if spec is None or constant is None or not count or constant.dtype not in FLOATS:
        return None
    values = _per_channel(constant, spec, count)
    if values is None:
        return None
    ones, zeros = np.ones(count), np.zeros(count)
    if node.op == "Add":
        return Affine(ones, values)
    if node.op == "Mul":
        return Affine(values, zeros)
    if node.op == "Sub":
        return Affine(ones, -values) if index == 0 else Affine(-ones, values)
    return Affine(1 / values, zeros) if index == 0 and values.all() else None


def _per_channel(constant: Array, spec: Spec, count: int) -> Array | None:
    """Return a constant as one float64 per channel (axis 1), where it broadcasts that way; else None."""
    if constant.ndim > spec.rank:
        return None
    shape = (1,) * (spec.rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, count):
        return None
    values = np.broadcast_to(constant.astype(np.float64).reshape(-1), (count,))
    return values if np.isfinite(values).all() else None
