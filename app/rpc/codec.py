"""Requests for inference and their answers as messages of gRPC."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from app.engine.requests import Outcome
from app.errors import RequestError, refuse
from app.models.datatypes import datatype_of
from app.models.repository import Served
from app.oip import tensors
from app.oip.request import (
    CodecLimits,
    InferRequest,
    Parameter,
    answered,
    check_counts,
    check_parameters,
    check_request_parameters,
    check_spec,
    make_request,
)
from app.rpc.messages import InferParameter, ModelInferResponse
from kernels.spec import STRING, Array, DType

_FIELDS: Final[Mapping[str, str]] = {  # of InferTensorContents, by datatype
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE: Final = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}  # which narrower types share


def parse(kind: Any, raw: bytes) -> Any:
    """Parse a message of that class. Raises RequestError 400."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise refuse(f"request: not a {kind.DESCRIPTOR.full_name}, {len(raw)} bytes") from None


def settings_of(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, or logging settings, as Python values; None for one without a value."""
    found = {}
    for key, value in sent.items():
        choice = value.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(value, choice)
    return found


def parameters_of(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as Python values. Raises RequestError 400 for one without a value."""
    found = settings_of(sent)
    for key, value in found.items():
        if value is None:
            raise refuse(f"request: parameter {key[:40]!r} has no value")
    return found


def decode(message: Any, limits: CodecLimits) -> InferRequest:
    """Return the request in a ModelInferRequest. Raises RequestError 400 or 501."""
    check_counts(len(message.inputs), len(message.outputs), limits)
    parameters: dict[str, Parameter] = parameters_of(message.parameters)
    check_request_parameters(parameters)
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise refuse(f"request: {len(message.inputs)} inputs and {len(raw)} raw_input_contents, need one for each input or none")
    feeds: dict[str, Array] = {}
    for at, tensor in enumerate(message.inputs):
        if tensor.name in feeds:
            raise refuse(f"input {tensor.name!r} is given twice")
        shape = tuple(tensor.shape)
        dtype = check_spec(tensor.name, tensor.datatype, shape, limits)
        check_parameters(f"input {tensor.name!r}", parameters_of(tensor.parameters))
        if not raw:
            feeds[tensor.name] = _from_contents(tensor, dtype, shape)
        elif tensor.HasField("contents"):
            raise refuse(f"input {tensor.name!r}: it has both contents and raw_input_contents, need one of them")
        else:
            feeds[tensor.name] = tensors.from_bytes(tensor.name, memoryview(raw[at]), dtype, shape)
    outputs = [(output.name, parameters_of(output.parameters)) for output in message.outputs]
    return make_request(feeds, outputs, message.id, parameters)


def slow_bytes(message: Any) -> int:
    """Return how many bytes of a ModelInferRequest `decode` examines one by one: all but those of raw numbers."""
    raw = message.raw_input_contents
    if not raw:
        return int(message.ByteSize())
    slow = [at for at, tensor in enumerate(message.inputs) if tensor.datatype in ("BYTES", "BOOL") and at < len(raw)]
    return sum(len(raw[at]) for at in slow)  # looking at one copies it


def _from_contents(tensor: Any, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return an input's values from the field of its datatype. Raises RequestError 400."""
    subject = f"input {tensor.name!r}"
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise refuse(f"{subject}: {tensor.datatype} has no form in contents, use raw_input_contents")
    filled = [found.name for found, _ in tensor.contents.ListFields()]
    if filled not in ([], [field]):
        raise refuse(f"{subject}: contents has {', '.join(filled)}, {tensor.datatype} needs {field}")
    values: Any = getattr(tensor.contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise refuse(f"{subject}: {field} has {len(values)} elements, shape {list(shape)} needs {count}")
    if dtype == STRING:
        array = np.empty(count, STRING)
        array[:] = [tensors.text_of(value) for value in values]
        return array.reshape(shape)
    return _narrowed(subject, np.array(values, _WIDE.get(field, dtype)), dtype).reshape(shape)


def _narrowed(subject: str, array: Array, dtype: DType) -> Array:
    """Convert integers to the datatype of a tensor. Raises RequestError 400 where one is out of its range."""
    if array.dtype == dtype or dtype.kind not in "iu":
        return array.astype(dtype, copy=False)
    info = np.iinfo(dtype)
    if array.size and not info.min <= int(array.min()) <= int(array.max()) <= info.max:
        raise refuse(f"{subject}: contents is outside of [{info.min}, {info.max}], the range of {dtype.name}")
    return array.astype(dtype)


def encode(asked: InferRequest, served: Served, outcome: Outcome) -> Any:
    """Return the answer to a request as a ModelInferResponse, with the values of all outputs as raw bytes."""
    reply = ModelInferResponse(
        model_name=served.name,
        model_version=served.version,
        id=asked.id,
        parameters={
            "plan_id": InferParameter(string_param=outcome.plan_id),
            "batch_rows": InferParameter(int64_param=outcome.batch_rows),
        },
    )
    for name, array, _ in answered(asked, served, outcome):
        reply.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        reply.raw_output_contents.append(tensors.to_bytes(array))
    return reply


def trace_of(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return trace settings as the protocol's JSON has them: a list for trace_level, else a string; None without a value."""
    found: dict[str, Any] = {}
    for key, setting in sent.items():
        values = list(setting.value)
        if len(values) > 1 and key != "trace_level":
            raise RequestError(400, f"trace: {key[:40]} has {len(values)} values, need one")
        found[key] = None if not values else values if key == "trace_level" else values[0]
    return found


def strings(value: object) -> Iterable[str]:
    """Return a setting's value as the strings of a trace setting."""
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
