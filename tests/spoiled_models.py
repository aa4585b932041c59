"""Random models of all registered operators, some of them spoiled, as hostile files have them.

Nodes are cases of the operators. They are chained where shapes and types fit, with nodes between that passes and rules look for:
views, transposes, splits whose parts are partly unread, channel shuffles, elementwise ops, and bodies of If, Loop and Scan.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kernels.containers import is_container
from kernels.errors import EdgewiseError
from kernels.registry import Op, evaluate, operators
from kernels.spec import ELEMENT_CODES, FLOATS, STRING, Array
from tests.kernels.ops.cases import arrays, specs_of
from tests.kernels.ops.models import NEWEST_OPSET

INTEGERS = (0, 1, -1, 2, 7, -7, 63, 64, 65, 2**31, 2**62, 2**63 - 1, -(2**63))
MOST_BYTES = 1 << 20  # of the outputs of a node that others are chained to
SPOILED = 0.2  # the share of nodes with an attribute or input of another value, shape or type


class Model:
    """A model as it grows. values: those to chain with, and an example of each as an array."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.ports: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.outputs: list[str] = []
        self._names = 0

    def name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def constant(self, array: Array) -> str:
        name = self.name()
        if array.dtype == STRING:
            self.constants.append(helper.make_tensor(name, onnx.TensorProto.STRING, array.shape, [str(x) for x in array.flat]))
        else:
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def input(self, array: Array) -> str:
        name, is_open = self.name(), self.source.random() < 0.3
        dims = [f"{name}_{axis}" if is_open else size for axis, size in enumerate(array.shape)]
        self.ports.append(helper.make_tensor_value_info(name, ELEMENT_CODES[array.dtype], dims))
        self.feeds[name] = array
        return name

    def leaf(self, array: Array) -> str:
        """The array as an initializer or a graph input."""
        return self.constant(array) if self.source.random() < 0.4 else self.input(array)

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attrs: Any) -> list[str]:
        """Append a node. An attribute that no file can hold is left out."""
        names = [self.name() for _ in range(outputs)]
        made = helper.make_node(op, inputs, names, f"node{self._names}", domain=domain)
        for key, value in attrs.items():
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                made.attribute.append(_attribute(key, value))
        self.nodes.append(made)
        return names

    def proto(self) -> onnx.ModelProto:
        wanted = [name for name in self.outputs if self.source.random() < 0.6] or self.outputs[-1:]
        ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in dict.fromkeys(wanted)]
        graph = helper.make_graph(self.nodes, "g", self.ports, ports, self.constants)
        opsets = [helper.make_opsetid("", NEWEST_OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _attribute(key: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, tuple) and not value:
        return helper.make_attribute(key, value, attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(key, numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value)


def spoiled_model(seed: int, nodes: int = 4) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of up to `nodes` cases and what lies between them, and feeds for it."""
    model = Model(random.Random(seed))
    with_cases = [op for op in operators().values() if op.cases and not _reads_containers(op)]
    for _ in range(model.source.randint(1, nodes)):
        _add_case(model, model.source.choice(with_cases))
    return model.proto(), model.feeds


def _reads_containers(op: Op) -> bool:
    """Whether a case needs a sequence or an optional, which no constant or port of these models holds."""
    return any(array is not None and is_container(array.dtype) for case in op.cases for array in arrays(op, case))


def _add_case(model: Model, op: Op) -> None:
    source = model.source
    case = source.choice([each for each in op.cases if each.raises is None] or list(op.cases))
    inputs, attrs = list(arrays(op, case)), dict(case.attrs)
    if source.random() < SPOILED:
        _spoil(source, op, inputs, attrs)
    names = ["" if array is None else _between(model, _chained(model, array), array) for array in inputs]
    made = _made(op, inputs, attrs)
    domain, _, kind = op.name.rpartition(".")
    given = {key: value for key, value in attrs.items() if value is not None}
    written = model.add(kind, names, source.choice([case.outputs, max(case.outputs, len(made))]), domain, **given)
    if len(written) > 1 and source.random() < 0.3:
        model.nodes[-1].output[source.randrange(len(written))] = ""
    for name, array in zip(model.nodes[-1].output, made, strict=False):
        if name and is_container(array.dtype):
            model.outputs.append(name)
        elif name:
            final = _between(model, name, array)
            model.values[final] = array
            model.outputs.append(final)
    if not made:
        model.outputs += [name for name in model.nodes[-1].output if name]


def _made(op: Op, inputs: Sequence[Array | None], attrs: dict[str, Any]) -> Sequence[Array]:
    """Return the outputs of a node; nothing where it is refused or too large."""
    try:
        specs = op.infer_specs(specs_of(inputs), op.bind(attrs))
        return evaluate(op, inputs, attrs) if sum(spec.nbytes for spec in specs) < MOST_BYTES else ()
    except EdgewiseError:
        return ()


def _chained(model: Model, array: Array) -> str:
    """A value made before of the same shape and type, or a new one."""
    same = [name for name, other in model.values.items() if (other.shape, other.dtype) == (array.shape, array.dtype)]
    return model.source.choice(same) if same and model.source.random() < 0.6 else model.leaf(array)


def _between(model: Model, name: str, array: Array) -> str:
    """The value behind a few nodes that keep its shape and type."""
    while model.source.random() < 0.45:
        name = model.source.choice(BETWEEN)(model, name, array)
    return name


def _spoil(source: random.Random, op: Op, inputs: list[Array | None], attrs: dict[str, Any]) -> None:
    """Change an attribute or an input, leave an input out, or the last ones."""
    choice = source.random()
    if choice < 0.5 and op.defaults:
        key = source.choice(list(op.defaults))
        default = attrs.get(key, op.defaults[key])
        if default is not inspect.Parameter.empty and default is not None:
            attrs[key] = _other(source, default)
    elif inputs:
        at = source.randrange(len(inputs))
        if choice < 0.6:
            del inputs[at:]
        else:
            inputs[at] = None if choice < 0.7 else _other_array(source, inputs[at])


def _other(source: random.Random, value: Any) -> Any:
    if isinstance(value, int):
        return source.choice(INTEGERS)
    if isinstance(value, float):
        return source.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    if isinstance(value, str):
        return source.choice(["", "nonsense", "SAME_UPPER", "VALID", "linear", "reflect"])
    if isinstance(value, tuple | list):
        items = tuple(value)
        changed = (*items[:-1], _other(source, items[-1])) if items else (1,)
        return source.choice([(), items[:-1], (*items, *items[:1]), items[::-1], changed])
    return value


def _other_array(source: random.Random, array: Array | None) -> Array | None:
    if array is None:
        return np.ones((2, 3), np.float32)
    changed: list[Array] = [array.reshape(-1), array[None], array.reshape(-1)[:1], array.reshape(-1)[:0], array[..., None]]
    if array.ndim:
        changed += [array[:0], np.concatenate([array, array])]
    if array.dtype != STRING:
        wanted = source.choice(["float32", "float64", "int64", "int32", "uint8", "bool", "float16"])
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and large numbers become any integer
            changed.append(array.astype(wanted))
        changed.append(np.full(array.shape, "a", STRING))
    if array.dtype == np.int64 and array.size:
        value = array.copy()
        value.reshape(-1)[source.randrange(array.size)] = source.choice(INTEGERS)
        changed += [value, value]
    return source.choice(changed)


# Nodes between: each keeps the shape and type of the value, or returns it as it is where it has no form for it.


def identity(m: Model, name: str, array: Array) -> str:
    return m.add("Identity", [name])[0]


def views(m: Model, name: str, array: Array) -> str:
    flat = m.add("Reshape", [name, m.ints(-1)])[0]
    return m.add("Reshape", [flat, m.ints(*array.shape)], allowzero=1)[0]


def unsqueezed(m: Model, name: str, array: Array) -> str:
    return m.add("Squeeze", [m.add("Unsqueeze", [name, m.ints(0)])[0], m.ints(0)])[0]


def transposes(m: Model, name: str, array: Array) -> str:
    there = list(range(array.ndim))
    m.source.shuffle(there)
    back = sorted(range(array.ndim), key=there.__getitem__)
    return m.add("Transpose", [m.add("Transpose", [name], perm=there)[0]], perm=back)[0] if array.ndim else name


def split_and_joined(m: Model, name: str, array: Array) -> str:
    if not array.ndim or array.shape[0] < 2:
        return name
    return m.add("Concat", m.add("Split", [name, m.ints(1, array.shape[0] - 1)], 2, axis=0), axis=0)[0]


def half_unread(m: Model, name: str, array: Array) -> str:
    """A Split of which one output is read."""
    if array.ndim < 2 or array.shape[1] < 2 or array.shape[1] % 2:
        return name
    half = m.source.choice(m.add("Split", [name, m.ints(array.shape[1] // 2, array.shape[1] // 2)], 2, axis=1))
    return m.add("Concat", [half, half], axis=1)[0]


def shuffled_channels(m: Model, name: str, array: Array) -> str:
    """What ShuffleNet does to its channels, with a convolution behind it."""
    if array.ndim != 4 or array.dtype != np.float32 or not array.size or array.shape[1] % 2:
        return name
    n, c, height, width = array.shape
    grouped = m.add("Reshape", [name, m.ints(n, 2, c // 2, height, width)])[0]
    turned = m.add("Transpose", [grouped], perm=[0, 2, 1, 3, 4])[0]
    whole = m.add("Reshape", [turned, m.ints(n, c, height, width)])[0]
    return m.add("Conv", [whole, m.constant(np.ones((c, c, 1, 1), np.float32))])[0]


def activation(m: Model, name: str, array: Array) -> str:
    return (
        m.add(m.source.choice(["Relu", "Neg", "Sigmoid", "HardSwish", "Erf", "Mish"]), [name])[0]
        if array.dtype in FLOATS
        else name
    )


def combined(m: Model, name: str, array: Array) -> str:
    if array.dtype not in FLOATS:
        return name
    other = np.full(m.source.choice([(), (1,), array.shape[-1:], array.shape]), 1.5).astype(array.dtype)
    return m.add(m.source.choice(["Add", "Mul", "Sub", "Div", "Max"]), [name, m.leaf(other)])[0]


def sliced(m: Model, name: str, array: Array) -> str:
    return m.add("Slice", [name, m.ints(0), m.ints(2**31), m.ints(0)])[0] if array.ndim else name


def _body(m: Model, inputs: dict[str, int], steps: Sequence[tuple[str, str]], code: int) -> onnx.GraphProto:
    """A body of Identity nodes. inputs: element types by name. steps: what each node reads and writes."""
    nodes = [helper.make_node("Identity", [read], [written], f"inner {written}") for read, written in steps]
    ports = [helper.make_tensor_value_info(label, kind, None) for label, kind in inputs.items()]
    kinds = [inputs.get(read, code) for read, _ in steps]
    made = [helper.make_tensor_value_info(written, kind, None) for (_, written), kind in zip(steps, kinds, strict=True)]
    return helper.make_graph(nodes, "body", ports, made)


def branched(m: Model, name: str, array: Array) -> str:
    ways = {way: _body(m, {}, [(name, m.name())], ELEMENT_CODES[array.dtype]) for way in ("then_branch", "else_branch")}
    return m.add("If", [m.leaf(np.array(True))], **ways)[0]


def looped(m: Model, name: str, array: Array) -> str:
    trip, going, again, state, new = (m.name() for _ in range(5))
    code = ELEMENT_CODES[array.dtype]
    inputs = {trip: onnx.TensorProto.INT64, going: onnx.TensorProto.BOOL, state: code}
    body = _body(m, inputs, [(going, again), (state, new)], code)
    return m.add("Loop", [m.leaf(np.array(2)), m.source.choice(["", m.leaf(np.array(True))]), name], body=body)[0]


def scanned(m: Model, name: str, array: Array) -> str:
    if not array.ndim:
        return name
    code, element = ELEMENT_CODES[array.dtype], m.name()
    return m.add("Scan", [name], body=_body(m, {element: code}, [(element, m.name())], code), num_scan_inputs=1)[0]


BETWEEN: tuple[Callable[[Model, str, Array], str], ...] = (
    *(identity, views, unsqueezed, transposes, split_and_joined, half_unread, shuffled_channels),
    *(activation, combined, sliced, branched, looped, scanned),
)
