"""Removal of dead code: nodes whose outputs are not read."""

from __future__ import annotations

from graph.passes.editor import Editor


def remove_dead(editor: Editor) -> None:
    """Remove every node that no graph output depends on, and every constant that is then not read."""
    for node in reversed(editor.graph.nodes):
        if not any(editor.is_read(value) for value in node.writes()):
            editor.drop(node)
    editor.changed |= any(not editor.is_read(name) for name in editor.graph.constants)
