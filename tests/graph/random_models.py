"""Make random acyclic models of many operators. The operators' own `infer` tracks the shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from kernels.registry import find
from kernels.spec import Spec
from tests.graph.oracle import BOOL, FLOAT, INT64, body, constant, make, node, port

UNARY = ("Relu", "Neg", "Tanh", "Sigmoid", "Abs", "Erf", "HardSwish", "Softplus", "LeakyRelu", "Elu", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
MAX_ELEMENTS = 4000
INPUTS = {"x": (2, 6), "image": (1, 4, 5, 5)}


class Build:
    """A model under construction.

    values: specs of its float32 values. known: specs of its constants. others: element types of its outputs of unknown shape.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values = {name: Spec(shape, np.dtype(np.float32)) for name, shape in INPUTS.items()}
        self.known: dict[str, Spec] = {}
        self.others: dict[str, int] = {}
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))

    def pick(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> str:
        """Return the name of a random value whose shape fits, or "" if there is none."""
        names = [name for name, spec in self.values.items() if fits(spec.shape)]
        return self.draw(st.sampled_from(names[-4:] if self.draw(st.booleans()) else names)) if names else ""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def keep(self, value, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(constant(name, value, dtype))
        self.known[name] = Spec.of(np.array(value, dtype))
        return name

    def weights(self, *shape: int) -> str:
        return self.keep(self.rng.standard_normal(shape) / 4)

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attrs) -> None:
        """Append a node, unless its outputs have more than MAX_ELEMENTS elements."""
        specs = [self.values.get(name) or self.known[name] if name else None for name in inputs]
        definition = find(op)
        typed = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
        made = definition.infer_specs(specs, definition.bind(typed))[:outputs]
        if sum(spec.elements for spec in made) > MAX_ELEMENTS:
            return
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(node(op, inputs, names, f"n{len(self.nodes)}", **attrs))
        self.values.update(zip(names, (Spec(spec.shape, spec.dtype) for spec in made), strict=True))


def unary(b: Build, a: str) -> None:
    b.add(b.draw(st.sampled_from(UNARY)), [a])


def binary(b: Build, a: str) -> None:
    shape = b.shape(a)
    same = b.pick(lambda other: other == shape)
    other = b.draw(st.sampled_from([same, b.weights(), b.weights(*shape[-1:]), b.weights(2, *([1] * len(shape)))]))
    b.add(b.draw(st.sampled_from(BINARY)), [a, other] if b.draw(st.booleans()) else [other, a])


def reshape(b: Build, a: str) -> None:
    elements = b.values[a].elements
    rows = b.draw(st.sampled_from([d for d in range(1, 13) if elements % d == 0]))
    target = b.draw(st.sampled_from([[rows, -1], [1, rows, -1], [-1]])) if elements else [0, 2]
    b.add("Reshape", [a, b.keep(target, np.int64)], allowzero=int(not elements))


def squeeze(b: Build, a: str) -> None:
    ones = [axis for axis, size in enumerate(b.shape(a)) if size == 1]
    if ones and b.draw(st.sampled_from([False, True])):
        b.add("Squeeze", [a, b.keep([b.draw(st.sampled_from(ones))], np.int64)])
    else:
        b.add("Unsqueeze", [a, b.keep([0], np.int64)])


def flatten(b: Build, a: str) -> None:
    b.add("Flatten", [a], axis=b.draw(st.integers(0, len(b.shape(a)))))


def transpose(b: Build, a: str) -> None:
    if shape := b.shape(a):
        b.add("Transpose", [a], perm=list(b.draw(st.permutations(range(len(shape))))))


def concat(b: Build, a: str) -> None:
    if shape := b.shape(a):
        other = b.pick(lambda candidate: candidate == shape)
        b.add("Concat", [a, other, a][: b.draw(st.integers(1, 3))], axis=b.draw(st.integers(0, len(shape) - 1)))


def split(b: Build, a: str) -> None:
    for axis, size in enumerate(b.shape(a)):
        if size >= 2:
            b.add("Split", [a, b.keep([1, size - 1], np.int64)], outputs=2, axis=axis)
            return


def slice_(b: Build, a: str) -> None:
    if shape := b.shape(a):
        axis = b.draw(st.integers(0, len(shape) - 1))
        start, end, step = b.draw(st.sampled_from([(0, 2, 1), (1, 2**31, 1), (-1, -(2**31), -1), (0, 2**31, 2), (1, 1, 1)]))
        b.add("Slice", [a, *(b.keep([value], np.int64) for value in (start, end, axis, step))])


def gather(b: Build, a: str) -> None:
    if shape := b.shape(a):
        axis = b.draw(st.integers(0, len(shape) - 1))
        if shape[axis]:
            b.add("Gather", [a, b.keep(b.draw(st.sampled_from([0, [0, 0, -1], [[0]]])), np.int64)], axis=axis)


def expand(b: Build, a: str) -> None:
    b.add("Expand", [a, b.keep([2, *([1] * len(b.shape(a)))], np.int64)])


def reduce(b: Build, a: str) -> None:
    if shape := b.shape(a):
        axis = b.draw(st.integers(0, len(shape) - 1))
        if shape[axis]:
            b.add(b.draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax"])), **_reduced(b, a, axis))


def _reduced(b: Build, a: str, axis: int) -> dict:
    return {"inputs": [a, b.keep([axis], np.int64)], "keepdims": b.draw(st.integers(0, 1))}


def softmax(b: Build, a: str) -> None:
    if b.shape(a):
        b.add(b.draw(st.sampled_from(["Softmax", "LogSoftmax"])), [a], axis=b.draw(st.integers(0, len(b.shape(a)) - 1)))


def normalise(b: Build, a: str) -> None:
    if (shape := b.shape(a)) and shape[-1]:
        b.add("LayerNormalization", [a, b.weights(shape[-1]), b.weights(shape[-1])], axis=-1)


def clip(b: Build, a: str) -> None:
    b.add("Clip", [a, b.draw(st.sampled_from(["", b.keep(-0.5)])), b.keep(0.75)])


def matmul(b: Build, a: str) -> None:
    if shape := b.shape(a):
        b.add("MatMul", [a, b.weights(shape[-1], b.draw(st.integers(1, 7)))])


def gemm(b: Build, a: str) -> None:
    if a := b.pick(lambda shape: len(shape) == 2):
        b.add("Gemm", [a, b.weights(5, b.shape(a)[1]), b.weights(5)], transB=1, alpha=0.5)


def conv(b: Build, a: str) -> None:
    a = b.pick(lambda shape: len(shape) == 4 and shape[1] > 0 and min(shape[2:]) >= 2)
    if a:
        channels = b.shape(a)[1]
        group = b.draw(st.sampled_from([1, channels]))
        out = channels * b.draw(st.integers(1, 2)) if group > 1 else b.draw(st.integers(1, 4))
        weight, bias = b.weights(out, channels // group, 3, 3), b.draw(st.sampled_from(["", b.weights(out)]))
        stride = b.draw(st.integers(1, 2))
        b.add("Conv", [a, weight, bias], group=group, pads=[1, 1, 1, 1], strides=[stride, stride], kernel_shape=[3, 3])


def _window(op: str) -> dict[str, Any]:
    return {} if op.startswith("Global") else {"kernel_shape": [2, 2], "strides": [1, 1]}


def pool(b: Build, a: str) -> None:
    a = b.pick(lambda shape: len(shape) == 4 and min(shape) >= 2)
    if a:
        op = b.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool"]))
        b.add(op, [a], **_window(op))


def where(b: Build, a: str) -> None:
    shape = b.shape(a)
    mask = b.keep(b.rng.random(shape[-1:]) > 0.5, np.bool_)
    b.add("Where", [mask, a, b.pick(lambda other: other == shape)])


def branch(b: Build, a: str) -> None:
    """Append an If over the graph input `flag`, whose branches both read the value `a` from outside."""
    then = body([node("Relu", [a], ["t"])], [], [port("t", b.shape(a))])
    other = body([node("Neg", [a], ["u"]), node("Tanh", ["u"], ["w"])], [], [port("w", b.shape(a))])
    made = f"v{len(b.nodes)}_0"
    b.nodes.append(node("If", ["flag"], [made], f"n{len(b.nodes)}", then_branch=then, else_branch=other))
    b.values[made] = b.values[a]


def run_time_shape(b: Build, a: str) -> None:
    """Append the positions of a graph input's elements above a constant. Only a run can tell how many there are."""
    source = b.draw(st.sampled_from(sorted(INPUTS)))
    tag = len(b.nodes)
    b.nodes += [
        node("Greater", [source, b.keep(0.25)], [f"g{tag}"], f"n{tag}"),
        node("NonZero", [f"g{tag}"], [f"p{tag}"], f"n{tag + 1}"),
        node("Cast", [f"p{tag}"], [f"q{tag}"], f"n{tag + 2}", to=FLOAT),
        node("Neg", [f"q{tag}"], [f"r{tag}"], f"n{tag + 3}"),
    ]
    b.others.update({f"p{tag}": INT64, f"r{tag}": FLOAT})


Step = Callable[[Build, str], None]
STEPS: tuple[Step, ...] = (
    unary,
    unary,
    unary,
    binary,
    binary,
    reshape,
    squeeze,
    flatten,
    transpose,
    concat,
    split,
    slice_,
    gather,
    expand,
)
STEPS += (reduce, softmax, normalise, clip, matmul, gemm, conv, conv, pool, where, branch, run_time_shape)


@st.composite
def random_models(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a model with the inputs x, image and flag, up to 24 steps and up to 5 outputs."""
    b = Build(draw)
    for _ in range(draw(st.integers(1, 24))):
        draw(st.sampled_from(STEPS))(b, b.pick())
    written = {name: FLOAT for name in b.values if name not in INPUTS} | b.others
    if not written:
        unary(b, "x")
        written = {name: FLOAT for name in b.values if name not in INPUTS}
    outputs = dict.fromkeys([*draw(st.lists(st.sampled_from(sorted(written)), max_size=4, unique=True)), list(written)[-1]])
    inputs = [*(port(name, shape) for name, shape in INPUTS.items()), port("flag", [], BOOL)]
    return make(b.nodes, {name: written[name] for name in outputs}, b.constants, inputs, opset=18)


@st.composite
def random_feeds(draw: st.DrawFn) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in INPUTS.items()}
    return {**arrays, "flag": np.array(draw(st.booleans()))}
