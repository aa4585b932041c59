"""Nodes and epilogues of a graph are translated to expressions over its values."""

import numpy as np
import pytest

from graph.ir import Fused, Node
from graph.native.expressions import BoundExpression, Sources, express, express_epilogue, without_nan
from kernels.expression import FLOAT, Apply, Expression
from kernels.native.errors import EmitError
from kernels.registry import find
from kernels.spec import Spec
from tests.graph.native.nets import normal, weights
from tests.graph.oracle import calls_of, check_native, constant, in_numpy, make, node, port

CONSTANTS = {"bias": np.ones(3, np.float32)}


def spec(name: str) -> Spec:
    return Spec((2, 3), np.dtype(np.int32) if name.startswith("i") else FLOAT)


def fused(op: str, *inputs: str, **attrs: object) -> Fused:
    return Fused(op, inputs, find(op).bind(attrs))


def behind(*epilogue: Fused, addend: str = "") -> BoundExpression:
    """Return the expression of an epilogue that follows a matrix product."""
    return express_epilogue(Node("n", "MatMul", ("a", "b"), ("y",), {}, epilogue), Sources(spec, CONSTANTS), addend)


def bound(operands: tuple[str, ...], *steps: Apply) -> BoundExpression:
    return BoundExpression(operands, Expression((FLOAT,) * len(operands), steps))


def test_result_is_operand_0_wherever_it_stands() -> None:
    assert behind(fused("Sub", "r", "")) == bound(("", "r"), Apply("sub", (1, 0)))
    assert behind() == bound(("",))


def test_value_that_is_read_twice_is_one_operand() -> None:
    assert behind(fused("Add", "", "r"), fused("Mul", "r", "")) == bound(("", "r"), Apply("add", (0, 1)), Apply("mul", (1, 2)))


@pytest.mark.parametrize("inputs", [("", "bias"), ("bias", "")], ids=["result-first", "result-last"])
def test_addend_comes_before_anything_else(inputs: tuple[str, str]) -> None:
    whole = behind(fused("Add", *inputs), fused("Mul", "", "r"), fused("Relu", ""))
    assert whole.addend == "bias"
    assert whole.without_addend() == bound(("", "r"), Apply("mul", (0, 1)), Apply("relu", (2,)))


def test_addend_that_is_read_again_stays_an_operand() -> None:
    whole = behind(fused("Add", "", "bias"), fused("Mul", "", "bias"))
    assert whole.without_addend() == bound(("", "bias"), Apply("mul", (0, 1)))


def test_addend_alone_leaves_nothing() -> None:
    assert behind(addend="bias").addend == "bias"
    assert behind(addend="bias").without_addend() == bound(("",))


@pytest.mark.parametrize(
    "epilogue",
    [(), (fused("Relu", ""),), (fused("Add", "", ""),), (fused("Mul", "", "r"),)],
    ids=["none", "relu", "twice", "mul"],
)
def test_other_first_steps_are_no_addend(epilogue: tuple[Fused, ...]) -> None:
    assert behind(*epilogue).addend is None


def test_constants_are_known_where_an_op_asks() -> None:
    node = Node("n", "Pow", ("x", "exponent"), ("y",), {})
    known = {"exponent": np.array([3], np.int64)}
    assert express(node, Sources(spec, known)) == bound(("x",), Apply("pow", (0,), (3.0,)))
    later = express(Node("n", "Pow", ("x", "i"), ("y",), {}), Sources(spec, {}))
    assert later.operands == ("i", "x")  # as they are read: the exponent is converted first


def test_op_without_an_expression_is_refused_by_name() -> None:
    with pytest.raises(EmitError, match=r"^Pow: it has no expression for inputs of int32, float32"):
        express(Node("n", "Pow", ("i", "x"), ("y",), {}), Sources(spec, {}))
    with pytest.raises(EmitError, match=r"^Softmax: it has no expression"):
        express(Node("n", "Softmax", ("x",), ("y",), find("Softmax").bind({})), Sources(spec, {}))


CHAINS = {
    "three-inputs": [node("Max", ["a", "c", "s"], ["t"]), node("Mean", ["t", "s", "t"], ["y"])],
    "run-time-bounds": [node("Swish", ["a"], ["t"], alpha=2.0), node("Clip", ["t", "low", "high"], ["y"])],
    "slope-and-power": [node("PRelu", ["a", "s"], ["t"]), node("Exp", ["t"], ["e"]), node("Pow", ["e", "s"], ["y"])],
    "itself": [node("Tanh", ["a"], ["t"]), node("Sub", ["s", "t"], ["u"]), node("Add", ["u", "u"], ["y"])],
}
HOSTS = {
    "conv": (node("Conv", ["x", "w"], ["a"]), weights("w", 9, 5, 3, 3), (9, 1, 1)),
    "product": (node("MatMul", ["x", "w"], ["a"]), weights("w", 7, 9), (9,)),
    "softmax": (node("Softmax", ["x"], ["a"]), weights("w", 1), (7,)),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("host", HOSTS)
def test_ops_of_several_operations_are_computed_by_the_kernel_before_them(isa, host, chain) -> None:
    """In one kernel call, whatever its layout of results."""
    first, w, shape = HOSTS[host]
    constants = [w, constant("c", normal(*shape)), constant("s", normal(*shape) / 4)]
    bounds = {"low": np.float32(-0.1), "high": np.float32(0.3)} if chain == "run-time-bounds" else {}
    ports = [port("x", [1, 5, 6, 7]), *(port(name, []) for name in bounds)]
    proto = make([first, *CHAINS[chain]], ["y"], constants, ports, opset=24)
    feeds = {"x": normal(1, 5, 6, 7), **bounds}
    executor = check_native(proto, feeds, isa, oracle=in_numpy)
    assert len([call for call in calls_of(executor) if "copy" not in call.kernel.name]) == 1


def test_an_expression_of_very_many_operands_is_refused() -> None:
    """Compiling a kernel with 800 operands took most of a minute."""
    names = tuple(f"v{n}" for n in range(129))
    assert len(express(Node("n", "Sum", names[:128], ("y",)), Sources(spec, {})).operands) == 128
    with pytest.raises(EmitError, match="it reads 129 operands, a kernel takes at most 128"):
        express(Node("n", "Sum", names, ("y",)), Sources(spec, {}))


@pytest.mark.parametrize(("largest", "op"), [(1e30, "fit"), (float("inf"), "cast")])
def test_a_cast_of_what_cannot_be_nan_says_so(largest, op):
    steps = (Apply("mul", (0, 1)), Apply("round", (2,)), Apply("cast", (3,), (), np.dtype(np.int8)))
    found = without_nan(Expression((FLOAT, FLOAT), steps), [255.0, largest])
    assert [step.op for step in found.steps] == ["mul", "round", op]


def test_products_that_may_overflow_may_be_nan():
    steps = (Apply("mul", (0, 1)), Apply("sub", (2, 2)), Apply("cast", (3,), (), np.dtype(np.uint8)))
    assert without_nan(Expression((FLOAT, FLOAT), steps), [1e20, 1e20]).steps[-1].op == "cast"


def test_small_integers_bound_what_follows():
    small = np.dtype(np.int8)
    steps = (
        Apply("cast", (0,), (), small),
        Apply("cast", (2,), (), FLOAT),
        Apply("mul", (1, 3)),
        Apply("cast", (4,), (), small),
    )
    found = without_nan(Expression((FLOAT, FLOAT), steps), [float("inf"), 1e30])
    assert [step.op for step in found.steps] == ["cast", "cast", "mul", "fit"]


def test_scales_that_are_not_finite_leave_casts():
    for scale, op in ((0.5, "fit"), (np.inf, "cast"), (np.nan, "cast")):
        known = {"s": np.array(scale, np.float32)}
        of = lambda name: Spec((4,), np.dtype(np.int8 if name == "y" else np.int32))  # noqa: E731
        epilogue = (Fused("Cast", ("",), {"to": 1}), Fused("Mul", ("", "s"), {}), Fused("Cast", ("",), {"to": 3}))
        node = Node("n", "MatMulInteger", ("a", "b"), ("y",), {}, epilogue)
        found = express_epilogue(node, Sources(of, known))
        assert found.expression.steps[-1].op == op


def test_casts_between_integers_stay():
    short = np.dtype(np.int16)
    steps = (Apply("cast", (0,), (), np.dtype(np.int8)),)
    assert without_nan(Expression((short,), steps), [32768.0]).steps == steps
