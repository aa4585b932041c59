"""Maps in ONNX files, which `ai.onnx.ml` has: as inputs of DictVectorizer and CastMap, and in sequences as results of ZipMap.

There are tensors alone behind the reader. A map that a model takes becomes two inputs, `<name>.keys` and `<name>.values`, in the
same order. The maps that ZipMap makes stay the tensor of scores that it makes them of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph.formats.onnx.tensors import element_type
from graph.ir import Port

if TYPE_CHECKING:
    from onnx import ValueInfoProto

READERS = frozenset({"ai.onnx.ml.DictVectorizer", "ai.onnx.ml.CastMap"})


def map_ports(value: ValueInfoProto, where: str) -> tuple[Port, Port]:
    """Return the inputs that stand for an input that is a map: its keys and its values, as many of each."""
    found = value.type.map_type
    types = {"keys": found.key_type, "values": found.value_type.tensor_type.elem_type}
    keys, values = (
        Port(f"{value.name}.{part}", element_type(code, where), (f"{value.name}.size",)) for part, code in types.items()
    )
    return keys, values


def is_maps(value: ValueInfoProto) -> bool:
    """Whether a value is a sequence of maps, as ZipMap makes it."""
    return bool(value.type.WhichOneof("value") == "sequence_type" and value.type.sequence_type.elem_type.HasField("map_type"))
