"""A request for inference, whichever transport carries it: its parts, their checks, and what is answered of a run.

Every violation is a RequestError that names the tensor, the value and the rule, in Triton's wording where clients rely on that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from app.engine.requests import Outcome
from app.errors import RequestError, refuse
from app.models.datatypes import DATATYPES, datatype_of
from app.models.repository import Served
from app.settings import Settings
from graph.ir import Port
from kernels.containers import is_container
from kernels.record import record
from kernels.spec import STRING, Array, DType
from scheduler.session import Session

Parameter = str | int | float | bool

MAX_CLASSIFICATIONS = 100_000


@record
class CodecLimits:
    """Limits of one request; see the settings of the same names."""

    body_bytes: int = 64 * 2**20
    tensor_elements: int = 2**26
    inputs: int = 64
    rank: int = 64
    json_bytes: int = 64 * 2**20
    json_depth: int = 100
    outputs: int = 256


def limits_of(settings: Settings) -> CodecLimits:
    """Return the limits that the service's settings define."""
    return CodecLimits(
        settings.max_body_bytes,
        settings.max_tensor_elements,
        settings.max_inputs,
        json_bytes=settings.max_json_bytes,
        outputs=settings.max_outputs,
    )


@record
class OutputRequest:
    """A requested output. binary: as bytes behind the JSON. classes: top classes instead of the tensor; 0 = the tensor."""

    name: str
    binary: bool = False
    classes: int = 0


@record
class InferRequest:
    """A decoded request. outputs: empty = all, binary if `binary_default`. timeout_us: 0 = none."""

    feeds: dict[str, Array]
    outputs: tuple[OutputRequest, ...] = ()
    binary_default: bool = False
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0


def check_spec(name: str, datatype: str, shape: tuple[int, ...], limits: CodecLimits) -> DType:
    """Return the dtype of an input; check its shape against the limits. Raises RequestError 400."""
    if datatype not in DATATYPES:
        raise refuse(f"input {name!r}: datatype is {datatype[:20]!r}, need one of {', '.join(DATATYPES)}")
    if len(shape) > limits.rank or any(size < 0 for size in shape):
        raise refuse(f"input {name!r}: shape is {list(shape)[:8]}, need at most {limits.rank} sizes ≥ 0")
    if (elements := math.prod(shape)) > limits.tensor_elements:
        raise refuse(f"input {name!r}: shape {list(shape)} has {elements} elements, the limit is {limits.tensor_elements}")
    return DATATYPES[datatype]


def check_counts(inputs: int, outputs: int, limits: CodecLimits) -> None:
    """Raise RequestError 400 for a request of more inputs or outputs than the limits allow."""
    if inputs > limits.inputs:
        raise refuse(f"request: {inputs} inputs, the limit is {limits.inputs}")
    if outputs > limits.outputs:
        raise refuse(f"request: {outputs} outputs, the limit is {limits.outputs}")


def check_parameters(subject: str, parameters: Mapping[str, Parameter]) -> None:
    """Raise RequestError 400 for reserved parameters, and 501 for shared memory. subject: whose, for the message."""
    for key in parameters:
        if key.startswith("triton_"):
            raise refuse(f"{subject}: parameter {key[:40]!r} is reserved")
        if key.startswith("shared_memory"):
            raise RequestError(501, f"{subject}: shared memory is not supported, send the data")


def _check_sequence(parameters: Mapping[str, Parameter]) -> None:
    """Check sequence parameters as the protocol defines them; they have no effect, since models have no state."""
    identity = parameters.get("sequence_id", 0)
    if isinstance(identity, bool | float) or (isinstance(identity, int) and identity < 0):
        raise refuse(f"request: parameter sequence_id is {identity!r}, need a number ≥ 0 or a string")
    for name in ("sequence_start", "sequence_end"):
        _flag("request", parameters, name, False)


def _unsigned(subject: str, parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise refuse(f"{subject}: parameter {name} is {value!r}, need an integer in [0, 2^64)")
    return value


def _flag(subject: str, parameters: Mapping[str, Parameter], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise refuse(f"{subject}: parameter {name} is {value!r}, need true or false")
    return value


def make_request(
    feeds: dict[str, Array],
    outputs: Iterable[tuple[str, Mapping[str, Parameter]]],
    identity: str,
    parameters: Mapping[str, Parameter],
    *,
    binary_default: bool = False,
) -> InferRequest:
    """Make a request of its parts. outputs: name and parameters of each that is asked for. Raises RequestError 400 or 501."""
    default = _flag("request", parameters, "binary_data_output", binary_default)
    return InferRequest(
        feeds,
        _outputs(outputs, default),
        default,
        identity,
        parameters,
        _unsigned("request", parameters, "priority"),
        _unsigned("request", parameters, "timeout"),
    )


def check_request_parameters(parameters: Mapping[str, Parameter]) -> None:
    """Raise RequestError 400 or 501 for parameters of a request that are not the protocol's, or that no server takes."""
    check_parameters("request", parameters)
    _check_sequence(parameters)


def _outputs(wanted: Iterable[tuple[str, Mapping[str, Parameter]]], default: bool) -> tuple[OutputRequest, ...]:
    found: dict[str, OutputRequest] = {}
    for name, parameters in wanted:
        subject = f"output {name!r}"
        if name in found:
            raise refuse(f"{subject} is asked for twice")
        check_parameters(subject, parameters)
        classes = parameters.get("classification", 0)
        if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= MAX_CLASSIFICATIONS:
            raise refuse(f"{subject}: classification is {classes!r}, need a number of classes")
        found[name] = OutputRequest(name, _flag(subject, parameters, "binary_data", default), classes)
    return tuple(found.values())


def require_tensors(served: Served, session: Session) -> None:
    """Raise RequestError 400 for a model that takes or returns sequences or optionals, which the protocol has no words for."""
    for role, ports in (("input", session.inputs), ("output", session.outputs)):
        for port in ports:
            if is_container(port.dtype):
                raise refuse(
                    f"{role} '{port.name}' of model '{served.name}' is a {port.type_name}, the protocol has tensors only; "
                    "run it with edgewise.Session"
                )


def for_model(asked: InferRequest, served: Served, session: Session) -> InferRequest:
    """Return the request with every output that it wants. Raises RequestError 400 if it does not fit the model."""
    _check_inputs(asked, served, session)
    return replace(asked, outputs=_wanted(asked, served, session))


def answered(asked: InferRequest, served: Served, outcome: Outcome) -> list[tuple[str, Array, bool]]:
    """Return name, values and whether they are wanted as bytes of every output that was asked for, classified where asked."""
    found = []
    for output in asked.outputs:
        array = outcome.outputs[output.name]
        if output.classes:
            array = classify(output.name, array, output.classes, served.card.labels.get(output.name, ()))
        found.append((output.name, array, output.binary))
    return found


def _check_inputs(asked: InferRequest, served: Served, session: Session) -> None:
    """Raise RequestError 400 if the feeds are not the model's inputs, in Triton's wording, on which clients rely."""
    ports = {port.name: port for port in session.inputs}
    for name in asked.feeds:
        if name not in ports:
            raise refuse(f"unexpected inference input '{name[:128]}' for model '{served.name}', it has {', '.join(ports)}")
    if len(asked.feeds) != len(ports):
        missing = ", ".join(name for name in ports if name not in asked.feeds)
        raise refuse(
            f"expected {len(ports)} inputs but got {len(asked.feeds)} inputs for model '{served.name}', missing {missing}"
        )
    for name, array in asked.feeds.items():
        _check_tensor(ports[name], array, served)


def _check_tensor(port: Port, array: Array, served: Served) -> None:
    if array.dtype != port.dtype:
        raise refuse(
            f"inference input '{port.name}' data-type is '{datatype_of(array.dtype)}', "
            f"model '{served.name}' expects '{datatype_of(port.dtype)}'"
        )
    dims = port.dims
    if dims is None:
        return
    fits = array.ndim == len(dims) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, array.shape, strict=True)
    )
    if not fits:
        expected = ",".join(str(dim) if isinstance(dim, int) else "-1" for dim in dims)
        got = ",".join(map(str, array.shape))
        raise refuse(f"unexpected shape for input '{port.name}' for model '{served.name}'. Expected [{expected}], got [{got}].")


def _wanted(asked: InferRequest, served: Served, session: Session) -> tuple[OutputRequest, ...]:
    names = [port.name for port in session.outputs]
    if not asked.outputs:
        return tuple(OutputRequest(name, asked.binary_default) for name in names)
    for output in asked.outputs:
        if output.name not in names:
            raise refuse(
                f"unexpected inference output '{output.name[:128]}' for model '{served.name}', it has {', '.join(names)}"
            )
    return asked.outputs


def classify(name: str, array: Array, classes: int, labels: Sequence[str] = ()) -> Array:
    """Return the top `classes` of an output as "value:index[:label]" strings.

    Returns: (batch, k) strings for an array of two or more dimensions, (k,) for one dimension.
    Raises:  RequestError 400 for an output that is not numeric, or beyond MAX_CLASSIFICATIONS.
    """
    if array.dtype == STRING or array.dtype.kind == "b":
        raise refuse(f"output {name!r}: classification needs numbers, it holds {datatype_of(array.dtype)}")
    if array.ndim == 0 or array.size == 0:
        return np.empty((*array.shape[:1], 0) if array.ndim > 1 else (0,), STRING)
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    if (wanted := len(rows) * min(classes, rows.shape[1])) > MAX_CLASSIFICATIONS:
        raise refuse(f"output {name!r}: {wanted} classifications, the limit is {MAX_CLASSIFICATIONS}")
    top = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :classes]
    text = np.empty(top.shape, STRING)
    for (row, rank), index in np.ndenumerate(top):
        label = f":{labels[int(index)]}" if index < len(labels) else ""
        value = str(rows[row, index]) if array.dtype.kind in "iu" else f"{float(rows[row, index]):f}"
        text[row, rank] = f"{value}:{index}{label}"
    return text if array.ndim > 1 else text[0]
