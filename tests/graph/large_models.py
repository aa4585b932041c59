"""Models of `n` nodes in the forms that make careless code take n² steps: hostile ones, and ones that are merely large."""

import functools

import numpy as np
import onnx
from onnx import helper

from tests.graph.oracle import BOOL, FLOAT, body, constant, ints, make, node, port


def ends(name: str, at: int, count: int) -> str:
    """The name of the value between two nodes of a chain: x before the first one, y behind the last one."""
    return "x" if at == 0 else "y" if at == count else f"{name}{at}"


def chain(n: int, ops: tuple[str, ...] = ("Relu", "Neg"), name: str = "") -> onnx.ModelProto:
    """One node behind another. name: of every node; by default they have none."""
    return make([node(ops[i % len(ops)], [ends("v", i, n)], [ends("v", i + 1, n)], name) for i in range(n)], ["y"])


def equal_names(n: int) -> onnx.ModelProto:
    """Every node is called the same."""
    return chain(n, name="same")


def names_that_are_numbered(n: int) -> onnx.ModelProto:
    """Half of the nodes have the names that the reader would give the others."""
    nodes = [node("Neg", [ends("v", i, n)], [ends("v", i + 1, n)], "same" if i % 2 else f"same#{i}") for i in range(n)]
    return make(nodes, ["y"])


def native_and_not(n: int) -> onnx.ModelProto:
    """Nodes with and without a native form in turns: as many segments as nodes."""
    return chain(n, ("Hardmax", "Softmax"))


def one_value_for_all(n: int) -> onnx.ModelProto:
    """All nodes read the same value, and one reads all that they make."""
    nodes = [node("Mul", ["x", f"c{i}"], [f"v{i}"]) for i in range(n)]
    constants = [constant(f"c{i}", np.full((2, 6), i + 2)) for i in range(n)]
    return make([*nodes, node("Sum", [f"v{i}" for i in range(n)], ["y"])], ["y"], constants)


def outputs(n: int) -> onnx.ModelProto:
    """Equal nodes whose results all are graph outputs."""
    return make([node("Neg", ["x"], [f"y{i}"]) for i in range(n)], [f"y{i}" for i in range(n)])


def parts(n: int) -> onnx.ModelProto:
    """A Split with n outputs, something done to each, and a Concat of n inputs."""
    nodes = [node("Split", ["x"], [f"v{i}" for i in range(n)], axis=0)]
    nodes += [node("Neg", [f"v{i}"], [f"w{i}"]) for i in range(n)]
    nodes.append(node("Concat", [f"w{i}" for i in range(n)], ["y"], axis=0))
    return make(nodes, ["y"], inputs=[port("x", [n])], opset=13)


def kept_to_the_end(n: int) -> onnx.ModelProto:
    """A chain whose values are all read again by the last node."""
    nodes = [node("Hardmax", [ends("v", i, n + 1)], [f"v{i + 1}"]) for i in range(n)]
    return make([*nodes, node("Concat", [f"v{i + 1}" for i in range(n)], ["y"], axis=0)], ["y"])


def constants(n: int) -> onnx.ModelProto:
    """A chain of sums of weights, which are known before the run."""
    nodes = [node("Add", [f"v{i}" if i else "c", f"c{i}"], [f"v{i + 1}"]) for i in range(n)]
    weights = [constant("c", np.ones(6)), *(constant(f"c{i}", np.full(6, i + 1)) for i in range(n))]
    return make([*nodes, node("Add", ["x", f"v{n}"], ["y"])], ["y"], weights)


def branches(n: int) -> onnx.ModelProto:
    """One If behind another; their bodies could read any value before them."""
    nodes = []
    for i in range(n):
        taken, other = ([node(op, [ends("v", i, n)], ["t"])] for op in ("Neg", "Relu"))
        ways = {"then_branch": body(taken, [], [port("t")]), "else_branch": body(other, [], [port("t")])}
        nodes.append(node("If", ["flag"], [ends("v", i + 1, n)], **ways))
    return make(nodes, ["y"], inputs=[port("x", [2, 6]), port("flag", [], BOOL)])


def sunk_views(n: int) -> onnx.ModelProto:
    """Reshapes in front of elementwise ops with an operand of another form: each makes a node that runs early."""
    nodes = []
    for i in range(n):
        nodes += [node("Hardmax", [ends("v", i, n)], [f"a{i}"]), node("Reshape", [f"a{i}", "flat"], [f"b{i}"])]
        nodes += [node("Mul", [f"b{i}", "z"], [f"c{i}"]), node("Reshape", [f"c{i}", "back"], [ends("v", i + 1, n)])]
    return make(nodes, ["y"], [ints("flat", 3, 4), ints("back", 2, 6)], [port("x", [2, 6]), port("z", [3, 4])])


def functions(n: int) -> onnx.ModelProto:
    """n functions, each called once."""
    imports = [helper.make_opsetid("", 17)]
    proto = make([node(f"F{i}", [ends("v", i, n)], [ends("v", i + 1, n)], domain="f") for i in range(n)], ["y"])
    proto.functions.extend(
        helper.make_function("f", f"F{i}", ["a"], ["b"], [node("Neg", ["a"], ["b"])], imports) for i in range(n)
    )
    proto.opset_import.append(helper.make_opsetid("f", 1))
    return proto


def attribute(n: int) -> onnx.ModelProto:
    """A constant given as a list of numbers."""
    nodes = [node("Constant", [], ["c"], value_ints=list(range(n))), node("Cast", ["c"], ["d"], to=FLOAT)]
    return make([*nodes, node("Add", ["x", "d"], ["y"])], ["y"], inputs=[port("x", [n])])


BYTES = ["scale", "zero"]
POINT = [constant("scale", 0.05), constant("zero", 3, np.uint8)]


def quantised(n: int) -> onnx.ModelProto:
    """Sums of bytes, of which every one reads the first."""
    nodes = [node("QuantizeLinear", ["x", *BYTES], ["q0"])]
    for i in range(n):
        nodes.append(node("QLinearAdd", [f"q{i}", *BYTES, "q0", *BYTES, *BYTES], [f"q{i + 1}"], domain="com.microsoft"))
    proto = make([*nodes, node("DequantizeLinear", [f"q{n}", *BYTES], ["y"])], ["y"], POINT)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def products_of_bytes(n: int) -> onnx.ModelProto:
    """Matrix products of what is quantised and dequantised again."""
    nodes = []
    for i in range(n):
        nodes.append(node("QuantizeLinear", [ends("v", i, n), *BYTES], [f"q{i}"]))
        nodes.append(node("DequantizeLinear", [f"q{i}", *BYTES], [f"a{i}"]))
        nodes.append(node("DequantizeLinear", [f"w{i}", "scale"], [f"b{i}"]))
        nodes.append(node("MatMul", [f"a{i}", f"b{i}"], [ends("v", i + 1, n)]))
    weights = [constant(f"w{i}", np.arange(36).reshape(6, 6) + i % 7, np.int8) for i in range(n)]
    return make(nodes, ["y"], [*POINT, *weights])


FORMS = (
    chain,
    equal_names,
    names_that_are_numbered,
    functools.partial(chain, ops=("Identity",)),
    native_and_not,
    one_value_for_all,
    outputs,
    parts,
    kept_to_the_end,
    constants,
    branches,
    sunk_views,
    functions,
    attribute,
    quantised,
    products_of_bytes,
)
