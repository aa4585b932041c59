"""Folding of BatchNormalization into the weight and bias of the convolution or Gemm in front."""

from __future__ import annotations

import numpy as np

from graph.ir import Graph, Node, Specs
from graph.passes.affine import Affine, absorb, channels
from graph.passes.editor import Editor
from kernels.ops.batch_norm import scale_and_shift


def fold_batch_norms(graph: Graph, specs: Specs) -> Graph:
    """Fold a normalisation with constant parameters where it alone reads its input. Adds a bias where there is none."""
    editor = Editor(graph, specs)
    for name in [node.name for node in graph.nodes if node.op == "BatchNormalization"]:
        node = editor.nodes[name]
        host = editor.sole_writer(node.inputs[0], node)
        if host is None or node.epilogue or node.attrs["training_mode"] or not editor.single_output(node):
            continue
        affine = _read(editor, node)
        if affine is not None and len(affine.scale) == channels(editor, host):
            absorb(editor, host, node, affine)
    return editor.finish()


def _read(editor: Editor, node: Node) -> Affine | None:
    parameters = [editor.constant(value) for value in node.inputs[1:]]
    arrays = [array for array in parameters if array is not None]
    if len(arrays) != 4:
        return None
    with np.errstate(all="ignore"):  # results that are not finite are left to the run
        affine = Affine(*scale_and_shift(arrays[0], arrays[1], arrays[2], arrays[3], node.attrs["epsilon"]))
    return affine if np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all() else None
