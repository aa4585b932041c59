"""BatchNormalization with constant parameters: folded into the node in front, or else a product and a sum for each channel."""

from __future__ import annotations

import numpy as np

from graph.ir import Node
from graph.passes.affine import Affine, absorb, channels
from graph.passes.editor import Editor
from kernels.ops.batch_norm import scale_and_shift
from kernels.spec import Spec


def fold_batch_norms(editor: Editor) -> None:
    """Fold a normalisation with constant parameters where it alone reads its input. Adds a bias where there is none."""
    for name in [node.name for node in editor.graph.nodes if node.op == "BatchNormalization"]:
        node = editor.nodes[name]
        host = editor.sole_writer(node.inputs[0], node)
        if host is None or node.epilogue or node.attrs["training_mode"] or not editor.single_output(node):
            continue
        affine = _read(editor, node)
        if affine is not None and len(affine.scale) == channels(editor, host):
            absorb(editor, host, node, affine)


def split_batch_norms(editor: Editor) -> None:
    """Replace each normalisation with constant parameters by Mul and Add, which are fused with elementwise ops around them.

    This is for those that no other pass has folded. Types with less precision than float32 are left alone: a normalisation
    computes them in float32 throughout, a product and a sum would each round.
    """
    for node in [node for node in editor.graph.nodes if node.op == "BatchNormalization"]:
        x = editor.spec(node.inputs[0])
        if x is None or x.rank < 2 or x.dtype not in (np.float32, np.float64) or node.epilogue or not editor.single_output(node):
            continue
        affine = _read(editor, node)
        if affine is not None and not node.attrs["training_mode"]:
            _split(editor, node, affine, x)


def _split(editor: Editor, node: Node, affine: Affine, x: Spec) -> None:
    shape = (-1, *[1] * (x.rank - 2))
    scale, shift = (
        editor.add_constant(f"{node.name}/{name}", values.astype(x.dtype).reshape(shape))
        for name, values in (("scale", affine.scale), ("shift", affine.shift))
    )
    scaled = editor.put_part(node, "Mul", (node.inputs[0], scale))
    editor.put_last(node, "Add", (scaled, shift))


def _read(editor: Editor, node: Node) -> Affine | None:
    parameters = [editor.constant(value) for value in node.inputs[1:]]
    arrays = [array for array in parameters if array is not None]
    if len(arrays) != 4:
        return None
    with np.errstate(all="ignore"):  # results that are not finite are left to the run
        affine = Affine(*scale_and_shift(arrays[0], arrays[1], arrays[2], arrays[3], node.attrs["epsilon"]))
    return affine if np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all() else None
