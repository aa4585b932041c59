"""Replacement of a MatMul of two matrices and an addition of a bias by Gemm."""

from __future__ import annotations

from dataclasses import replace

from graph.ir import Node
from graph.passes.editor import Editor, origins
from kernels.registry import find
from kernels.spec import FLOATS


def make_gemms(editor: Editor) -> None:
    """Turn MatMul + Add into Gemm where both factors are float matrices and the bias broadcasts to the product."""
    for name in [node.name for node in editor.graph.nodes if node.op == "Add"]:
        node = editor.nodes[name]
        for index in (0, 1):
            product = editor.sole_writer(node.inputs[index], node)
            if product is not None and product.op == "MatMul" and node.inputs[0] != node.inputs[1]:
                _fuse(editor, product, node, node.inputs[1 - index])
                break


def _fuse(editor: Editor, product: Node, node: Node, bias: str) -> None:
    factors = [editor.spec(value) for value in product.inputs]
    made, added = editor.specs.get(node.outputs[0]), editor.spec(bias)
    if made is None or added is None or made.dtype not in FLOATS or made != editor.specs.get(product.outputs[0]):
        return
    if any(spec is None or spec.rank != 2 for spec in factors) or added.rank > 2 or node.epilogue:
        return
    gemm = Node(product.name, "Gemm", (*product.inputs, bias), node.outputs, find("Gemm").bind({}))
    editor.merge(replace(gemm, origins=origins(product)), node)
