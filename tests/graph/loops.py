"""Models of nested loops, which run as long as a test wants."""

import onnx

from tests.graph.oracle import BOOL, INT64, body, constant, make, node, port


def nested_loops(*trips: int, width: int = 1) -> onnx.ModelProto:
    """Loops inside loops of that many rounds, the outermost first; the innermost adds 1 to x, of shape (width)."""
    inner = [node("Add", [f"s{len(trips)}", "one"], [f"t{len(trips)}"], "add")]
    for level in range(len(trips), 1, -1):
        made = _body(inner, f"t{level}", width, level)
        inner = [node("Loop", [f"n{level}", "", f"s{level - 1}"], [f"t{level - 1}"], f"loop{level}", body=made)]
    outermost = node("Loop", ["n1", "", "x"], ["y"], "loop1", body=_body(inner, "t1", width, 1))
    counts = [constant(f"n{level}", count, "int64") for level, count in enumerate(trips, 1)]
    return make([outermost], ["y"], [constant("one", [1]), *counts], [port("x", [width])])


def endless() -> bytes:
    """A model whose loops would make 10¹⁸ rounds, as a file."""
    return nested_loops(999_999, 999_999, 999_999).SerializeToString()


def _body(nodes: list[onnx.NodeProto], made: str, width: int, number: int) -> onnx.GraphProto:
    """The body of a Loop that goes on, and carries one value."""
    going = node("Identity", [f"go{number}"], [f"again{number}"])
    inputs = [port(f"i{number}", [], INT64), port(f"go{number}", [], BOOL), port(f"s{number}", [width])]
    return body([going, *nodes], inputs, [port(f"again{number}", [], BOOL), port(made, [width])])
