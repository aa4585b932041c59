from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from graph.ir import Fused, Graph, Node, Port
from kernels.spec import Spec
from scheduler.signature import signature

F32 = np.dtype(np.float32)
SPECS = {"x": Spec((1, 3, 8, 8), F32), "w": Spec((4, 3, 3, 3), F32), "y": Spec((1, 4, 6, 6), F32), "r": Spec((1, 4, 6, 6), F32)}
WEIGHTS = {"w": np.zeros((4, 3, 3, 3), np.float32)}
CONV = Node("conv_1", "Conv", ("x", "w"), ("y",), {"strides": (1, 1), "group": 1})


def test_signature_text_names_specs_constants_and_attributes():
    assert signature(CONV, SPECS, WEIGHTS).text == (
        "Conv(f32[1,3,8,8], f32[4,3,3,3]:const){group=1,strides=[1,1]} -> f32[1,4,6,6]"
    )


def test_signature_key_is_the_hash_of_its_text():
    found = signature(CONV, SPECS, WEIGHTS)
    assert found.key == hashlib.sha256(found.text.encode()).hexdigest()


def test_signature_does_not_depend_on_names_or_weights():
    other = Node("another", "Conv", ("a", "b"), ("c",), {"group": 1, "strides": [1, 1]})
    specs = {"a": SPECS["x"], "b": SPECS["w"], "c": SPECS["y"]}
    assert signature(other, specs, {"b": np.ones((4, 3, 3, 3), np.float32)}) == signature(CONV, SPECS, WEIGHTS)


@pytest.mark.parametrize(
    ("node", "specs", "constants"),
    [
        (replace(CONV, attrs={"strides": (2, 1), "group": 1}), SPECS, WEIGHTS),
        (CONV, {**SPECS, "x": Spec((2, 3, 8, 8), F32)}, WEIGHTS),
        (CONV, {**SPECS, "x": Spec((1, 3, 8, 8), np.dtype(np.float64))}, WEIGHTS),
        (CONV, SPECS, {}),
        (replace(CONV, epilogue=(Fused("Relu", ("",)),)), SPECS, WEIGHTS),
        (replace(CONV, inputs=("x", "w", "")), SPECS, WEIGHTS),
        (replace(CONV, op="ConvTranspose"), SPECS, WEIGHTS),
    ],
    ids=["attribute", "shape", "dtype", "weight_not_constant", "epilogue", "absent_input", "op"],
)
def test_signature_changes_with_what_decides_the_speed(node, specs, constants):
    assert signature(node, specs, constants).key != signature(CONV, SPECS, WEIGHTS).key


def test_signature_spells_small_integer_constants():
    node = Node("sum", "ReduceSum", ("x", "axes"), ("y",))
    specs = {"x": Spec((4, 4, 4), F32), "axes": Spec((1,), np.dtype(np.int64)), "y": Spec((4, 4), F32)}
    first = signature(node, specs, {"axes": np.array([0])})
    last = signature(node, specs, {"axes": np.array([2])})
    assert "i64[1]=[0]" in first.text
    assert first.key != last.key


def test_signature_of_unknown_shapes_is_marked():
    assert "?" in signature(CONV, {**SPECS, "y": None}, WEIGHTS).text


def test_signature_of_a_subgraph_ignores_its_names():
    def body(value: str) -> Graph:
        port = Port(value, F32, (2,))
        return Graph("b", (port,), (Port("out", F32, (2,)),), (Node("n" + value, "Relu", (value,), ("out",)),), {})

    one = Node("if", "Loop", ("x",), ("y",), {"body": body("u")})
    two = Node("if", "Loop", ("x",), ("y",), {"body": body("v")})
    other = Node("if", "Loop", ("x",), ("y",), {"body": replace(body("u"), nodes=())})
    assert signature(one, SPECS, {}) == signature(two, SPECS, {})
    assert signature(one, SPECS, {}) != signature(other, SPECS, {})


def test_signature_of_a_node_with_many_inputs_stays_short():
    names = tuple(f"v{i}" for i in range(2000))
    specs = {name: Spec((1, 3), F32) for name in names} | {"y": SPECS["y"]}
    node = Node("cat", "Concat", names, ("y",), {"axis": 0})
    found = signature(node, specs, {})
    assert len(found.text) < 8200
    assert found.key != signature(node, {**specs, "v1999": Spec((2, 3), F32)}, {}).key


@pytest.mark.parametrize("value", [np.float32, np.dtype(np.int8), np.arange(100), "text", 1.5, None, True, b"raw", np.int64(3)])
def test_signature_takes_every_kind_of_attribute(value):
    if value is np.float32:
        with pytest.raises(TypeError, match="no canonical text"):
            signature(replace(CONV, attrs={"a": value}), SPECS, {})
    else:
        assert "a=" in signature(replace(CONV, attrs={"a": value}), SPECS, {}).text
