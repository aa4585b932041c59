from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.errors import RequestError
from app.models.datatypes import datatype_of
from app.oip import tensors
from app.oip.request import CodecLimits
from app.rpc import codec
from app.rpc.messages import InferParameter, ModelInferRequest
from tests.app.oip.test_tritonclient import VALUES

LIMITS = CodecLimits()


def text(array: np.ndarray) -> np.ndarray:
    """Return strings as the engine has them."""
    if array.dtype != object:
        return array
    made = np.empty(array.shape, object)
    made.ravel()[:] = [item.decode() for item in array.ravel()]
    return made


def tensor(name: str = "x", datatype: str = "FP32", shape=(1, 3), **contents):
    made = ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(made.contents, field).extend(values)
    return made


def request(*inputs, raw=(), **fields):
    return ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=list(raw), **fields)


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_bytes_of_every_datatype(datatype):
    array = text(VALUES[datatype])
    asked = codec.decode(request(tensor(datatype=datatype), raw=[tensors.to_bytes(array)]), LIMITS)
    np.testing.assert_array_equal(asked.feeds["x"], array)
    assert datatype_of(asked.feeds["x"].dtype) == datatype


@pytest.mark.parametrize("datatype", [name for name in VALUES if name in codec._FIELDS])
def test_contents_of_every_datatype_that_has_a_field(datatype):
    contents: dict[str, Any] = {codec._FIELDS[datatype]: VALUES[datatype].ravel().tolist()}
    asked = codec.decode(request(tensor(datatype=datatype, **contents)), LIMITS)
    np.testing.assert_array_equal(asked.feeds["x"], text(VALUES[datatype]))
    assert datatype_of(asked.feeds["x"].dtype) == datatype


def test_several_inputs_outputs_and_parameters():
    parameters = {"timeout": InferParameter(int64_param=7), "priority": InferParameter(uint64_param=2)}
    asked = codec.decode(
        request(
            tensor("a", shape=(1,)),
            tensor("b", "BYTES", shape=(2,)),
            raw=[b"\0\0\x80?", b"\1\0\0\0u\0\0\0\0"],
            parameters=parameters,
            outputs=[{"name": "y", "parameters": {"classification": InferParameter(int64_param=3)}}, {"name": "z"}],
            id="i",
        ),
        LIMITS,
    )
    assert (asked.feeds["a"].tolist(), asked.feeds["b"].tolist()) == ([1.0], ["u", ""])
    assert (asked.id, asked.timeout_us, asked.priority) == ("i", 7, 2)
    assert [(output.name, output.classes) for output in asked.outputs] == [("y", 3), ("z", 0)]


def shared(name="shared_memory_region"):
    made = tensor(fp32_contents=[1, 2, 3])
    made.parameters[name].string_param = "r"
    return request(made)


REFUSED = {
    "no bytes": (request(tensor(), raw=[b""]), 400, "input byte size mismatch for input 'x': 0 bytes"),
    "few bytes": (request(tensor(), raw=[bytes(8)]), 400, r"8 bytes, shape \[1, 3\] needs 12"),
    "raw count": (request(tensor(), tensor("z"), raw=[bytes(12)]), 400, "2 inputs and 1 raw_input_contents"),
    "both": (request(tensor(fp32_contents=[1, 2, 3]), raw=[bytes(12)]), 400, "both contents and raw_input_contents"),
    "another field": (request(tensor(int_contents=[1, 2, 3])), 400, "contents has int_contents, FP32 needs fp32_contents"),
    "few": (request(tensor(fp32_contents=[1])), 400, r"fp32_contents has 1 elements, shape \[1, 3\] needs 3"),
    "none": (request(tensor()), 400, "fp32_contents has 0 elements"),
    "range": (request(tensor("x", "INT8", (1,), int_contents=[200])), 400, r"outside of \[-128, 127\], the range of int8"),
    "half": (request(tensor("x", "FP16")), 400, "FP16 has no form in contents, use raw_input_contents"),
    "datatype": (request(tensor("x", "FP128")), 400, "datatype is 'FP128', need one of BOOL"),
    "shape": (request(tensor(shape=(-1, 3))), 400, r"shape is \[-1, 3\]"),
    "huge": (request(tensor(shape=(1 << 40,))), 400, "elements, the limit is"),
    "twice": (request(tensor(fp32_contents=[1, 2, 3]), tensor(fp32_contents=[1, 2, 3])), 400, "input 'x' is given twice"),
    "inputs": (request(*[tensor(str(n), shape=(0,)) for n in range(65)]), 400, "65 inputs, the limit is 64"),
    "outputs": (request(outputs=[{"name": str(n)} for n in range(257)]), 400, "257 outputs, the limit is 256"),
    "bool": (request(tensor("x", "BOOL", (1,)), raw=[b"\2"]), 400, "a BOOL byte is neither 0 nor 1"),
    "shared memory": (shared(), 501, "shared memory is not supported"),
    "reserved": (shared("triton_x"), 400, "parameter 'triton_x' is reserved"),
    "empty parameter": (request(parameters={"p": InferParameter()}), 400, "parameter 'p' has no value"),
    "timeout": (request(parameters={"timeout": InferParameter(string_param="1")}), 400, "timeout is '1', need an integer"),
    "classes": (
        request(outputs=[{"name": "y", "parameters": {"classification": InferParameter(bool_param=True)}}]),
        400,
        "classification is True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_requests(case):
    message, status, says = REFUSED[case]
    with pytest.raises(RequestError, match=says) as caught:
        codec.decode(message, LIMITS)
    assert caught.value.status == status


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\xff", b"not a message at all"])
def test_what_is_no_message(raw):
    with pytest.raises(RequestError, match=f"request: not a inference.ModelInferRequest, {len(raw)} bytes"):
        codec.parse(ModelInferRequest, raw)


def test_slow_bytes_are_those_examined_one_by_one():
    numbers = request(tensor(), tensor("s", "BYTES", (1,)), raw=[bytes(12), b"\0\0\0\0"])
    assert codec.slow_bytes(numbers) == 4
    contents = request(tensor(fp32_contents=[1, 2, 3]))
    assert codec.slow_bytes(contents) == contents.ByteSize()


def test_trace_and_log_settings():
    from app.rpc.messages import message

    asked = message("TraceSettingRequest")()
    asked.settings["trace_level"].value.extend(["TIMESTAMPS"])
    asked.settings["trace_rate"].value.append("5")
    asked.settings["trace_count"].SetInParent()
    assert codec.trace_of(asked.settings) == {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": None}
    asked.settings["trace_rate"].value.append("6")
    with pytest.raises(RequestError, match="trace_rate has 2 values"):
        codec.trace_of(asked.settings)


def test_bfloat16_is_raw():
    array = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    assert codec.decode(request(tensor(datatype="BF16"), raw=[array.tobytes()]), LIMITS).feeds["x"].dtype == array.dtype
