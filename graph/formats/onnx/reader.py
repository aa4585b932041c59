"""The reader of ONNX files. Nothing in a file is trusted; every error message names the place in the file.

The reader also normalises: it inlines model-local functions, turns Constant nodes into constants, fills in default attributes,
rewrites nodes of older opsets to the newest form (`Op.upgrade`), and sorts and names the nodes. Inputs, outputs and values keep
the names they have in the file.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graph.digest import Digest
from graph.errors import CorruptModelError, LimitError
from graph.formats.onnx.attributes import NEWEST_OPSET, OLDEST_OPSET
from graph.formats.onnx.flex_attention import FLEX_ATTENTION, expand
from graph.formats.onnx.maps import READERS, is_maps, map_ports
from graph.formats.onnx.messages import AttributeProto, TensorProto
from graph.formats.onnx.schema import KINDS, check_kinds, check_types, is_standard, op_name, walk
from graph.formats.onnx.source import load, parse
from graph.formats.onnx.tensors import TensorReader, element_type, value_type
from graph.formats.onnx.tools import advice
from graph.ir import BATCHED, CONTROL_FLOW, Dim, Graph, Model, Node, Port
from graph.limits import Check, Limits, go_on
from graph.mapped import require_unchanged
from graph.order import sort
from kernels.errors import EdgewiseError, UnknownOpError, UnsupportedError
from kernels.registry import find, is_registered
from kernels.spec import STRING, Array

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorShapeProto, ValueInfoProto

_SCAN_OPSET = 9  # before it, Scan is batched
_ANONYMOUS = re.compile(r"\s*|\?|-1|None|unk(nown)?|unk__\d+")  # what exporters write for an unknown size: each one is its own
_NAMED_OPS = 20  # in one message
_DEFAULT_LIMITS = Limits()


def read(
    source: str | Path | bytes | ModelProto, limits: Limits = _DEFAULT_LIMITS, *, mapped: bool = True, check: Check = go_on
) -> Model:
    """Read and check a model.

    Args:    source: a path (external data is read from its folder only), the bytes of a file, or a ModelProto.
             mapped: large weights stay in their file, which must not be written to; else the file is read as a whole.
             check: called between nodes and between tensors; what it raises ends the reading.
    Raises:  CorruptModelError, LimitError, UnsafePathError, CyclicGraphError, UnknownOpError (naming every unknown op),
             UnsupportedError; FileNotFoundError for a missing path.
    """
    check()
    loaded = load(source, limits, mapped=mapped)
    check()
    name, proto = loaded.name, parse(loaded)
    check()
    if proto.functions:
        from graph.formats.onnx.functions import inline  # noqa: PLC0415  few files have functions

        proto = inline(proto, limits)
    opset = _opset(proto)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedError(f"model: opset is {opset}, this build reads {OLDEST_OPSET}…{NEWEST_OPSET} ({name})")
    tensors = TensorReader(loaded.folder, limits, mapped=mapped)
    reader = _GraphReader(tensors, opset, limits, loaded.weights, check)
    reader.refuse_unknown_ops(proto.graph)
    graph = reader.graph(proto.graph, None, depth=0)
    if twice := [output for output, count in Counter(port.name for port in graph.outputs).items() if count > 1]:
        raise CorruptModelError(f"graph: output {twice[0]!r} is listed twice, need one name each ({name})")
    files = (*loaded.files, *tensors.files.values())
    require_unchanged(files)
    digest = Digest((loaded.whole, *reader.external), files)
    if not loaded.files:
        digest.text(check)  # now, so that the bytes need not be kept
    return Model(
        graph=graph,
        contents=digest,
        opset=opset,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        source=name,
        nbytes=loaded.nbytes + tensors.external_bytes,
        initializers=frozenset(reader.initializers),
        files=files,
    )


def _opset(proto: ModelProto) -> int:
    """Return the opset of ONNX's own operators: 0 where it is missing, and the newest where no node needs one."""
    opsets: dict[str, int] = {opset.domain or "": opset.version for opset in proto.opset_import}
    return opsets.get("", opsets.get("ai.onnx", 0 if any(map(is_standard, walk(proto.graph.node))) else NEWEST_OPSET))


class _Scope:
    """The values that nodes of one graph may read: its own, and those of the graphs around it."""

    def __init__(self, own: Set[str], outer: _Scope | None) -> None:
        self._own, self._outer = own, outer

    def __contains__(self, value: object) -> bool:
        return value in self._own or (self._outer is not None and value in self._outer)


class _GraphReader:
    """Reads the graphs of one model and enforces the limits that hold for all of them together."""

    def __init__(
        self, tensors: TensorReader, opset: int, limits: Limits, weights: Mapping[str, Array], check: Check = go_on
    ) -> None:
        self.check = check
        self.weights = weights  # raw data of the outermost graph's initializers that its message does not hold
        self.tensors = tensors
        self.opset = opset
        self.limits = limits
        self.nodes = 0
        self.initializers: set[str] = set()
        self.external: list[Array] = []
        self.node_names: set[str] = set()
        self.maps: dict[str, tuple[str, str]] = {}  # inputs that are maps: the names of their keys and values
        self.copies: Counter[str] = Counter()  # of a node name: how many of its numbers are known to be taken

    def refuse_unknown_ops(self, proto: GraphProto) -> None:
        """Raise UnknownOpError naming operators that are not registered, each with the first node that uses it.

        Of very many, the first _NAMED_OPS are named.
        """
        unknown: dict[str, str] = {}
        graphs = [proto]
        while graphs:
            self.check()
            graph = graphs.pop()
            for node in graph.node:
                op = op_name(node)
                graphs.extend(a.g for a in node.attribute if a.type == AttributeProto.GRAPH)
                if op not in CONTROL_FLOW and op not in ("Constant", FLEX_ATTENTION) and not is_registered(op):
                    unknown.setdefault(op, node.name)
        if unknown:
            named = [f"{_unknown(op)} (node {node!r})" for op, node in itertools.islice(unknown.items(), _NAMED_OPS)]
            more = [f"and {len(unknown) - _NAMED_OPS} more"] if len(unknown) > _NAMED_OPS else []
            raise UnknownOpError("; ".join(named + more))

    def graph(self, proto: GraphProto, outer: _Scope | None, depth: int) -> Graph:
        """Read a graph.

        Args: outer: values of the graphs around it, which nodes may read; None for the outermost. depth: of nesting, 0 there.
        """
        name = proto.name or "graph"
        if depth > self.limits.depth:
            raise LimitError(f"graph: subgraphs are nested {depth} deep, the limit is {self.limits.depth} (graph {name!r})")
        if proto.sparse_initializer:
            raise UnsupportedError(f"graph: sparse initializers are not supported (graph {name!r})")
        written = expand(proto.node)
        ports = [value.name for value in (*proto.input, *proto.output)]
        self._check_names((name, *ports, *(tensor.name for tensor in proto.initializer)), f"graph {name[:40]!r}")
        constants = self._initializers((*proto.initializer, *written.constants), name, self.weights if depth == 0 else {})
        inputs = tuple(
            port for value in proto.input if value.name not in constants for port in self._inputs(value, optional_type=depth > 0)
        )
        outputs = tuple(self._port(value, "output", optional_type=depth > 0) for value in proto.output)
        defined = set(constants)
        for port in inputs:
            _define(defined, port.name, f"input of graph {name!r}")
        self.nodes += len(written.nodes)
        if self.nodes > self.limits.nodes:
            raise LimitError(f"graph: more than {self.limits.nodes} nodes, the limit nodes (graph {name!r})")
        visible = _Scope(defined | {value for node in written.nodes for value in node.output if value}, outer)
        nodes = []
        for index, node in enumerate(written.nodes):
            self.check()
            if op_name(node) == "Constant":
                _define(defined, node.output[0] if node.output else "", f"Constant {node.name!r}")
                constants[node.output[0]] = self._constant(node)
            else:
                nodes.append(self._node(node, index, visible, constants, depth))
        for writer, value in [(node, value) for node in nodes for value in node.writes()]:
            _define(defined, value, f"node {writer.name!r}")
        known = _Scope(defined | set(constants), outer)
        _check_outputs(outputs, known, name)
        return Graph(name, inputs, outputs, sort(nodes, known), constants)

    def _initializers(self, tensors: Iterable[TensorProto], graph: str, weights: Mapping[str, Array]) -> dict[str, Array]:
        constants: dict[str, Array] = {}
        for tensor in tensors:
            self.check()
            if not tensor.name or tensor.name in constants:
                raise CorruptModelError(f"initializer: name {tensor.name!r} is empty or used twice (graph {graph!r})")
            constants[tensor.name] = self._tensor(tensor, f"initializer {tensor.name!r}", weights.get(tensor.name))
        self.initializers.update(constants)
        return constants

    def _node(self, proto: NodeProto, index: int, visible: _Scope, constants: dict[str, Array], depth: int) -> Node:
        op = op_name(proto)
        name = self._unique(proto.name or f"{proto.op_type}_{index}")
        inputs = self._with_maps(proto.input, op, name)
        for value in inputs:
            if value and value not in visible:
                raise CorruptModelError(f"{op}: input {value!r} is not written by any node (node {name!r})")
        attribute_names = (attribute.name for attribute in proto.attribute)
        self._check_names((proto.name, proto.op_type, *proto.input, *proto.output, *attribute_names), f"node {name[:40]!r}")
        check_kinds(proto, op, name)
        attrs = {a.name: self._attribute(a, name, visible, depth) for a in proto.attribute}
        outputs = tuple(proto.output)
        if not outputs:
            raise CorruptModelError(f"{op}: it has no output, need at least one (node {name!r})")
        if op in CONTROL_FLOW:
            if op == "Scan" and self.opset < _SCAN_OPSET:
                attrs = {BATCHED: 1, "scan_input_directions": attrs.pop("directions", None), **attrs}
            if not any(isinstance(value, Graph) for value in attrs.values()):
                raise CorruptModelError(f"{op}: it has no subgraph (node {name!r})")
            return Node(name, op, tuple(inputs), outputs, attrs, origins=(name,))
        definition = find(op)
        try:
            if definition.upgrade is not None:
                attrs, extra = definition.upgrade(self.opset, attrs, len(outputs))
                inputs = _with_constants(inputs, extra, name, constants, visible)
            bound = definition.bind(attrs)
        except EdgewiseError as error:
            raise type(error)(f"{error} (node {name!r})") from None
        check_types(definition, bound, name)
        while inputs and not inputs[-1]:
            inputs.pop()  # trailing absent inputs have no meaning
        return Node(name, op, tuple(inputs), outputs, bound, origins=(name,))

    def _unique(self, name: str) -> str:
        unique = name
        while unique in self.node_names:
            self.copies[name] += 1
            unique = f"{name}#{self.copies[name] + 1}"
        self.node_names.add(unique)
        return unique

    def _check_names(self, names: Iterable[str], where: str) -> None:
        """Raise unless every name is UTF-8 (protobuf returns bytes where one is not) and within the length limit."""
        for name in names:
            if not isinstance(name, str):
                raise CorruptModelError(f"graph: a name is not UTF-8, {bytes(name)[:40]!r} ({where})")
            if len(name) > self.limits.text_length:
                raise LimitError(f"graph: a name has {len(name)} characters, the limit is {self.limits.text_length} ({where})")

    def _tensor(self, proto: TensorProto, subject: str, raw: Array | None = None) -> Array:
        array = self.tensors.read(proto, subject, raw)
        if proto.data_location == TensorProto.EXTERNAL:
            self.external.append(array)
        return array

    def _constant(self, node: NodeProto) -> Array:
        where = f"Constant {node.name or node.output[0]!r}"
        if len(node.attribute) != 1:
            raise CorruptModelError(f"Constant: it has {len(node.attribute)} attributes, need one value ({where})")
        attribute = node.attribute[0]
        value = self._attribute(attribute, where, None, 0)
        if attribute.name == "value" and isinstance(value, np.ndarray):
            return value
        dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        if attribute.name in dtypes:
            return np.array(value, dtypes[attribute.name])
        if attribute.name in ("value_string", "value_strings"):
            return np.array(value, STRING)
        raise UnsupportedError(f"Constant: attribute {attribute.name!r} is not supported ({where})")

    def _attribute(self, proto: AttributeProto, node: str, visible: _Scope | None, depth: int) -> Any:
        where = f"attribute {proto.name!r} of node {node!r}"
        if proto.ref_attr_name:
            raise CorruptModelError(f"attribute: it refers to {proto.ref_attr_name!r} outside of a function ({where})")
        kind = KINDS.get(proto.type, "?")
        if kind in ("FLOATS", "INTS", "STRINGS"):
            values = {"FLOATS": proto.floats, "INTS": proto.ints, "STRINGS": proto.strings}[kind]
            if len(values) > self.limits.list_length:
                raise LimitError(f"attribute: {len(values)} values, the limit is {self.limits.list_length} ({where})")
            return tuple(_text(v, where) if kind == "STRINGS" else v for v in values)
        if kind == "STRING":
            if len(proto.s) > self.limits.text_length:
                raise LimitError(f"attribute: {len(proto.s)} bytes of text, the limit is {self.limits.text_length} ({where})")
            return _text(proto.s, where)
        if kind == "TENSOR":
            return self._tensor(proto.t, where)
        if kind == "GRAPH":
            return self.graph(proto.g, visible, depth + 1)
        if kind in ("FLOAT", "INT"):
            return proto.f if kind == "FLOAT" else proto.i
        if kind == "TYPE_PROTO":
            return value_type(proto.tp, where)
        raise UnsupportedError(f"attribute: type {kind} is not supported ({where})")

    def _inputs(self, value: ValueInfoProto, *, optional_type: bool) -> tuple[Port, ...]:
        """Return the inputs that an input of the file becomes: two where it is a map."""
        if value.type.WhichOneof("value") != "map_type":
            return (self._port(value, "input", optional_type=optional_type),)
        keys, values = map_ports(value, f"input {value.name!r}")
        self.maps[value.name] = (keys.name, values.name)
        return keys, values

    def _with_maps(self, inputs: Iterable[str], op: str, node: str) -> list[str]:
        """Return the inputs of a node, each map as its keys and its values."""
        found: list[str] = []
        for value in inputs:
            if value in self.maps and op not in READERS:
                raise UnsupportedError(
                    f"{op}: input {value!r} is a map, need {' or '.join(sorted(READERS))} to read it (node {node!r})"
                )
            found += self.maps.get(value, (value,))
        return found

    def _port(self, value: ValueInfoProto, role: str, *, optional_type: bool = False) -> Port:
        where = f"{role} {value.name!r}"
        kind = value.type.WhichOneof("value")
        if kind is None and (optional_type or role == "output"):
            return Port(value.name, np.dtype(np.float32), None)  # bodies of control flow may omit types
        if role == "output" and is_maps(value):
            return Port(value.name, np.dtype(np.float32), None)  # the scores that the maps are made of
        if kind in ("sequence_type", "optional_type"):
            return Port(value.name, value_type(value.type, where), (None,))
        if kind != "tensor_type":
            found = (kind or "value without a type").removesuffix("_type")
            raise UnsupportedError(f"graph: {where} is a {found}, only tensors, sequences and optionals are supported")
        tensor = value.type.tensor_type
        dtype = element_type(tensor.elem_type, where)
        if not tensor.HasField("shape"):
            return Port(value.name, dtype, None)
        return Port(value.name, dtype, tuple(_dim(dim, where) for dim in tensor.shape.dim))


def _unknown(op: str) -> str:
    """Return the message about an operator that is not registered: the closest names that are, and the tool that wrote it."""
    try:
        find(op)
    except UnknownOpError as error:
        return f"{error}{advice(str(op))}"  # a damaged name is bytes
    raise AssertionError(f"{op} is registered")


def _check_outputs(outputs: tuple[Port, ...], defined: _Scope, graph: str) -> None:
    if not outputs:
        raise CorruptModelError(f"graph: it has no output (graph {graph!r})")
    for port in outputs:
        if port.name not in defined:
            raise CorruptModelError(f"graph: output {port.name!r} is not written by any node (graph {graph!r})")


def _define(defined: set[str], value: str, where: str) -> None:
    if not value or value in defined:
        raise CorruptModelError(f"graph: value {value!r} is empty or written twice, need one producer ({where})")
    defined.add(value)


def _with_constants(
    inputs: list[str], extra: Mapping[int, Array], node: str, constants: dict[str, Array], visible: _Scope
) -> list[str]:
    for position, array in extra.items():
        value = f"{node}/input_{position}"
        while value in visible or value in constants:
            value += "'"
        inputs += [""] * (position + 1 - len(inputs))
        inputs[position] = value
        constants[value] = array
    return inputs


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise CorruptModelError(f"attribute: a string is not UTF-8 ({where})") from None


def _dim(dim: TensorShapeProto.Dimension, where: str) -> Dim:
    if dim.HasField("dim_value"):
        if dim.dim_value < 0:
            return None  # some exporters write -1 for an open dimension
        return int(dim.dim_value)
    if not isinstance(dim.dim_param, str):
        raise CorruptModelError(f"graph: the name of a dimension is not UTF-8, {bytes(dim.dim_param)[:40]!r} ({where})")
    return None if _ANONYMOUS.fullmatch(dim.dim_param) else dim.dim_param
