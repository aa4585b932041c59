"""Removal of dead code: nodes whose outputs are not read."""

from __future__ import annotations

from graph.ir import Graph, Specs
from graph.passes.editor import Editor


def remove_dead(graph: Graph, specs: Specs) -> Graph:
    """Remove every node that no graph output depends on, and every constant that is then not read."""
    editor = Editor(graph, specs)
    for node in reversed(graph.nodes):
        if not any(editor.is_read(value) for value in node.writes()):
            editor.drop(node)
    editor.changed |= any(not editor.is_read(name) for name in graph.constants)
    return editor.finish()
