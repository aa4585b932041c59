"""Passes remove dead code, identities, chains of views and duplicates."""

import numpy as np
import pytest

from graph.passes.dead import remove_dead
from graph.passes.duplicates import merge_duplicates
from graph.passes.editor import Editor
from graph.passes.identities import remove_identities
from graph.passes.views import collapse_views
from tests.graph.passes.checks import applied, build, const, node, ops, optimised, random, rewritten


def test_dead_nodes_and_constants_go() -> None:
    graph = build(
        [node("Relu", ["x"], ["y"]), node("Exp", ["x"], ["a"]), node("Mul", ["a", "w"], ["b"])],
        [random("w", 4), random("lost", 3)],
    )
    after = rewritten(graph, remove_dead)
    assert ops(after) == ["Relu"]
    assert not after.constants


NO_OPS = {
    "identity": (node("Identity", ["a"], ["b"]), ()),
    "dropout": (node("Dropout", ["a"], ["b", "mask"]), ()),
    "cast": (node("Cast", ["a"], ["b"], to=1), ()),
    "reshape": (node("Reshape", ["a", "s"], ["b"]), (const("s", [2, -1], np.int64),)),
    "transpose": (node("Transpose", ["a"], ["b"], perm=[0, 1]), ()),
    "pad": (node("Pad", ["a", "p"], ["b"]), (const("p", [0, 0, 0, 0], np.int64),)),
    "slice": (node("Slice", ["a", "f", "t"], ["b"]), (const("f", [0, 0], np.int64), const("t", [9, 9], np.int64))),
    "concat": (node("Concat", ["a"], ["b"], axis=0), ()),
    "expand": (node("Expand", ["a", "s"], ["b"]), (const("s", [1, 4], np.int64),)),
    "add_0": (node("Add", ["a", "c"], ["b"]), (const("c", 0.0),)),
    "0_add": (node("Add", ["c", "a"], ["b"]), (const("c", np.zeros(4)),)),
    "mul_1": (node("Mul", ["a", "c"], ["b"]), (const("c", 1.0),)),
    "div_1": (node("Div", ["a", "c"], ["b"]), (const("c", np.ones((2, 4))),)),
    "pow_1": (node("Pow", ["a", "c"], ["b"]), (const("c", 1.0),)),
}


@pytest.mark.parametrize(("middle", "initializers"), NO_OPS.values(), ids=NO_OPS)
def test_no_ops_are_removed(middle, initializers) -> None:
    graph = build([node("Relu", ["x"], ["a"]), middle, node("Exp", ["b"], ["y"])], initializers)
    assert ops(rewritten(graph, remove_identities)) == ["Relu", "Exp"]


REAL = {
    "reversing_slice": (
        node("Slice", ["a", "f", "t", "x1", "st"], ["b"]),
        [const(n, [v], np.int64) for n, v in (("f", -1), ("t", -9), ("x1", 1), ("st", -1))],
    ),
    "shifting_pad": (node("Pad", ["a", "p"], ["b"]), [const("p", [0, -1, 0, 1], np.int64)]),
    "square_transpose": (node("Transpose", ["a"], ["b"], perm=[1, 0]), ()),
    "widening_add_0": (node("Add", ["a", "c"], ["b"]), (const("c", np.zeros((3, 4, 4))),)),
    "1_div": (node("Div", ["c", "a"], ["b"]), (const("c", 1.0),)),
    "0_sub": (node("Sub", ["c", "a"], ["b"]), (const("c", 0.0),)),
}


@pytest.mark.parametrize(("middle", "initializers"), REAL.values(), ids=REAL)
def test_lookalikes_stay(middle, initializers) -> None:
    graph = build([node("Exp", ["x"], ["a"]), middle, node("Neg", ["b"], ["y"])], initializers, inputs={"x": (4, 4)})
    assert len(rewritten(graph, remove_identities).nodes) == 3


def test_a_dropout_whose_mask_is_read_stays() -> None:
    nodes = [node("Dropout", ["x"], ["d", "m"]), node("Cast", ["m"], ["f"], to=1), node("Mul", ["d", "f"], ["y"])]
    assert ops(rewritten(build(nodes), remove_identities))[0] == "Dropout"


def test_an_identity_in_front_of_an_output_hands_its_name_over() -> None:
    graph = build([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"]), node("Exp", ["a"], ["z"])], outputs=("y", "z"))
    after = rewritten(graph, remove_identities)
    assert ops(after) == ["Relu", "Exp"]
    assert after.nodes[0].outputs == ("y",)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_concat_loses_its_empty_inputs(axis) -> None:
    inputs = {"x": (2, 4), "past": (2, 0)}
    graph = build([node("Concat", ["past", "x", "past", "x"], ["y"], axis=axis)], (), inputs)
    after = rewritten(graph, remove_identities)
    assert after.nodes[0].inputs == ("x", "x")
    alone = build([node("Concat", ["past", "x"], ["a"], axis=axis), node("Exp", ["a"], ["y"])], (), inputs)
    assert ops(rewritten(alone, remove_identities)) == ["Exp"]


def test_a_concat_of_empty_inputs_stays() -> None:
    graph = build([node("Concat", ["x", "x"], ["y"], axis=1)], (), {"x": (2, 0)})
    assert ops(rewritten(graph, remove_identities)) == ["Concat"]


def test_an_identity_from_input_to_output_stays() -> None:
    assert ops(rewritten(build([node("Identity", ["x"], ["y"])]), remove_identities)) == ["Identity"]


def test_two_names_of_one_value_stay_two_outputs() -> None:
    graph = build([node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"])], outputs=("y", "z"))
    assert ops(rewritten(graph, remove_identities)) == ["Relu", "Identity"]


def test_transposes_in_a_row_are_one() -> None:
    graph = build(
        [node("Transpose", ["x"], ["a"], perm=[1, 2, 0]), node("Transpose", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        inputs={"x": (2, 3, 5)},
    )
    after = optimised(graph).graph
    assert ops(after) == ["Transpose+Exp"]
    assert after.nodes[0].attrs["perm"] == (0, 2, 1)


def test_transposes_that_cancel_disappear() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
        node("Transpose", ["a"], ["b"], perm=[2, 0, 1]),
        node("Exp", ["b"], ["y"]),
    ]
    assert ops(optimised(build(nodes, inputs={"x": (2, 3, 5)})).graph) == ["Exp"]


def test_squeeze_and_unsqueeze_cancel() -> None:
    one = const("one", [1], np.int64)
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Squeeze", ["a", "one"], ["b"]),
        node("Unsqueeze", ["b", "one"], ["c"]),
        node("Exp", ["c"], ["y"]),
    ]
    assert ops(optimised(build(nodes, [one], inputs={"x": (3, 1, 2)})).graph) == ["Relu+Exp"]


def test_reshapes_in_a_row_are_one() -> None:
    nodes = [node("Flatten", ["x"], ["a"]), node("Reshape", ["a", "s"], ["b"]), node("Exp", ["b"], ["y"])]
    graph = build(nodes, [const("s", [0, 2, -1], np.int64)], inputs={"x": (2, 3, 4)})
    after = rewritten(graph, collapse_views)
    assert [n.inputs[0] for n in after.nodes if n.op == "Reshape"] == ["x"]


def test_a_reshape_of_nothing_keeps_its_zero() -> None:
    nodes = [node("Flatten", ["x"], ["a"]), node("Flatten", ["a"], ["b"], axis=0), node("Exp", ["b"], ["y"])]
    rewritten(build(nodes, inputs={"x": (2, 0, 4)}), collapse_views)


def test_equal_nodes_are_one() -> None:
    nodes = [
        node("Exp", ["x"], ["a"]),
        node("Exp", ["x"], ["b"]),
        node("Mul", ["a", "p"], ["c"]),
        node("Mul", ["b", "q"], ["d"]),
        node("Sub", ["c", "d"], ["e"]),
        node("Add", ["e", "a"], ["y"]),
    ]
    after = rewritten(build(nodes, [const("p", 2.0), const("q", 2.0)]), merge_duplicates)
    assert ops(after) == ["Exp", "Mul", "Sub", "Add"]
    assert after.nodes[0].origins == ("n0", "n1")


def test_nodes_of_other_attributes_stay_apart() -> None:
    nodes = [node("Elu", ["x"], ["a"], alpha=1.0), node("Elu", ["x"], ["b"], alpha=2.0), node("Sub", ["a", "b"], ["y"])]
    assert len(rewritten(build(nodes), merge_duplicates).nodes) == 3


def test_random_nodes_stay_apart() -> None:
    nodes = [node("RandomNormalLike", ["x"], ["a"]), node("RandomNormalLike", ["x"], ["b"]), node("Sub", ["a", "b"], ["y"])]
    graph = build(nodes)

    assert applied(graph, merge_duplicates) is graph


def test_equal_nodes_that_are_both_outputs_stay() -> None:
    graph = build([node("Exp", ["x"], ["y"]), node("Exp", ["x"], ["z"])], outputs=("y", "z"))
    assert len(rewritten(graph, merge_duplicates).nodes) == 2


def test_a_value_under_three_names_keeps_the_output_one() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Identity", ["a"], ["b"]),
        node("Exp", ["b"], ["c"]),
        node("Identity", ["b"], ["y"]),
        node("Identity", ["y"], ["d"]),
        node("Add", ["c", "d"], ["e"]),
        node("Sub", ["e", "b"], ["z"]),
    ]
    after = rewritten(build(nodes, outputs=("y", "z")), remove_identities)
    assert ops(after) == ["Relu", "Exp", "Add", "Sub"]


@pytest.mark.parametrize("op", ["Identity", "Exp"])
def test_a_node_that_reads_very_many_is_rewritten_once(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, puts = 400, []
    nodes = [node(op, ["x"], [f"v{i}"]) for i in range(count)] + [node("Sum", [f"v{i}" for i in range(count)], ["y"])]
    original = Editor.put
    monkeypatch.setattr(Editor, "put", lambda editor, n: (puts.append(n.op), original(editor, n))[1])
    rewritten(build(nodes), remove_identities if op == "Identity" else merge_duplicates)
    assert puts.count("Sum") == 1
