"""Bodies of the inference protocol: every body is decoded to a request or refused with a typed error."""

import gzip
import json
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import RequestError
from app.models.datatypes import DATATYPES, datatype_of
from app.oip import codec, tensors
from app.oip.request import CodecLimits, InferRequest, classify

LIMITS = CodecLimits(1 << 20, 1 << 16)


def body_of(*inputs: dict, **extra: object) -> bytes:
    return json.dumps({"inputs": inputs, **extra}).encode()


def decode(body: bytes) -> InferRequest:
    return codec.decode(body, len(body), LIMITS)


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BYTES", "BF16"})).flatmap(
        lambda name: hnp.arrays(DATATYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=0))
    )
)
@settings(max_examples=80, deadline=None)
def test_binary_round_trip(array: np.ndarray) -> None:
    reply, length = codec.encode({"model_name": "m"}, [("x", array, True)])
    (output,) = json.loads(reply[:length])["outputs"]
    request = json.dumps({"inputs": [{**output, "parameters": output["parameters"]}]}).encode()
    tail = reply[length:] if length is not None else b""
    back = codec.decode(request + tail, len(request), LIMITS).feeds["x"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BYTES", "BF16", "FP16"})).flatmap(
        lambda name: hnp.arrays(DATATYPES[name], hnp.array_shapes(max_dims=3, max_side=4))
    )
)
@settings(max_examples=80, deadline=None)
def test_json_round_trip(array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(RequestError, match="NaN or infinity"):
            codec.encode({}, [("x", array, False)])
        return
    reply, length = codec.encode({}, [("x", array, False)])
    assert length is None
    np.testing.assert_array_equal(decode(body_of(*json.loads(reply)["outputs"])).feeds["x"], array)


def test_the_largest_integers_beside_small_ones_round_trip() -> None:
    array = np.array([2**63, 0, 2**64 - 1], np.uint64)
    reply, _ = codec.encode({}, [("x", array, False)])
    np.testing.assert_array_equal(decode(body_of(*json.loads(reply)["outputs"])).feeds["x"], array)


@given(st.lists(st.text(max_size=20), max_size=6))
def test_strings_round_trip_binary(texts: list[str]) -> None:
    array = np.array(texts, object)
    tail = tensors.to_bytes(array)
    head = body_of({"name": "x", "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}})
    assert codec.decode(head + tail, len(head), LIMITS).feeds["x"].tolist() == texts


def test_bfloat16_is_binary_only() -> None:
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    head = body_of({"name": "x", "shape": [2], "datatype": "BF16", "parameters": {"binary_data_size": 4}})
    assert codec.decode(head + array.tobytes(), len(head), LIMITS).feeds["x"].tolist() == [1.5, -2]
    with pytest.raises(RequestError, match="no JSON form"):
        codec.encode({}, [("x", array, False)])


def tensor(**changes: object) -> dict:
    return {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **changes}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not an inference request"),
        (b"{", "not an inference request"),
        (b"[" * 100_000, "nests deeper than 100"),
        (b'{"inputs": 3}', "not an inference request"),
        (body_of(tensor(datatype="FP31")), "FP31"),
        (body_of(tensor(shape=[-1])), "sizes ≥ 0"),
        (body_of(tensor(shape=[16, 2**60 + 2])), "the limit is"),
        (body_of(tensor(shape=[1] * 100)), "at most 64 sizes"),
        (body_of(tensor(data=[1])), "1 elements"),
        (body_of(tensor(data=1)), "need an array"),
        (body_of(tensor(data=[[1], [2, 3]])), "not a regular array"),
        (body_of(tensor(data=["a", "b"])), "need float32"),
        (body_of(tensor(datatype="INT8", data=[1, 200])), "range of int8"),
        (body_of(tensor(datatype="INT32", data=[1.5, 2])), "need int32"),
        (body_of(tensor(datatype="UINT64", data=[-1, 2])), "range of uint64"),
        (body_of(tensor(datatype="BOOL", data=[1, 2])), "true, false"),
        (body_of(tensor(datatype="FP16")), "no JSON form"),
        (body_of(tensor(datatype="BYTES", data=[1, "a"])), "needs strings"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "not an inference request"),
        (body_of(tensor(), tensor()), "given twice"),
        (body_of({k: v for k, v in tensor().items() if k != "data"}), "neither data nor"),
        (body_of(tensor(parameters={"binary_data_size": 8})), "both data and"),
        (body_of({**tensor(parameters={"binary_data_size": 8}), "data": None}), "both data and"),
        (body_of(tensor(), outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (body_of(tensor(), outputs=[{"name": "y", "parameters": {"classification": -1}}]), "number of classes"),
        (body_of(tensor(), parameters={"binary_data_output": 3}), "true or false"),
        (body_of(tensor(), parameters={"triton_enable": True}), "reserved"),
        (body_of(*[tensor(name=str(i)) for i in range(65)]), "the limit is 64"),
    ],
)
def test_bad_requests_are_refused_by_name(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        decode(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("size", [-1, 5, 9, 2**70, True, "8"])
def test_lying_binary_size_is_refused(size: object) -> None:
    head = body_of({"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}})
    with pytest.raises(RequestError):
        codec.decode(head + bytes(8), len(head), LIMITS)


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    with pytest.raises(RequestError, match="unexpected additional input data"):
        codec.decode(body_of(tensor()) + b"x", len(body_of(tensor())), LIMITS)


@pytest.mark.parametrize("tail", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00\xff", b"\x00\x00\x00\x00\x00"])
def test_string_prefixes_are_checked(tail: bytes) -> None:
    head = body_of({"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}})
    with pytest.raises(RequestError):
        codec.decode(head + tail, len(head), LIMITS)


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "99", "9" * 40, ""])
def test_header_length_out_of_range(text: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        codec.header_length(text, 10)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed_bodies(pack) -> None:
    name = "gzip" if pack is gzip.compress else "deflate"
    assert codec.decompress(pack(b"abc"), name, 10) == b"abc"
    with pytest.raises(RequestError) as caught:
        codec.decompress(pack(bytes(10**6)), name, 1000)
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="truncated"):
        codec.decompress(pack(b"abc")[:-2], name, 10)
    with pytest.raises(RequestError):
        codec.decompress(b"plain", name, 10)


def test_unknown_encoding_says_which_are_known() -> None:
    with pytest.raises(RequestError) as caught:
        codec.decompress(b"", "br", 10)
    assert caught.value.status == 501
    assert caught.value.headers == {"Accept-Encoding": "gzip, deflate"}


def test_raw_body_learns_one_dimension() -> None:
    request = codec.decode_raw(np.arange(6, dtype=np.float32).tobytes(), "x", DATATYPES["FP32"], ["n", None, 2])
    assert request.feeds["x"].shape == (1, 3, 2)
    with pytest.raises(RequestError, match="mismatch"):
        codec.decode_raw(bytes(7), "x", DATATYPES["FP32"], [2])


def test_classification_is_value_index_label() -> None:
    top = classify("y", np.array([[0.1, 0.7, 0.2]], np.float32), 2, ["a", "b"])
    assert top.tolist() == [["0.700000:1:b", "0.200000:2"]]


def test_datatype_names() -> None:
    assert {datatype_of(dtype) for dtype in DATATYPES.values()} == set(DATATYPES)


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_and_nothing_else(noise: bytes, cut: int) -> None:
    with pytest.raises(RequestError):
        codec.decode(noise, min(cut, len(noise)), LIMITS)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8", "UINT64", "BOOL"])
@pytest.mark.parametrize("nested", [True, False])
def test_large_data_is_decoded_as_small_data_is(monkeypatch: pytest.MonkeyPatch, datatype: str, nested: bool) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 2, (7, 5, 11)).astype(DATATYPES[datatype]) if datatype != "FP64" else rng.standard_normal((7, 5, 11))
    data = array.tolist() if nested else array.ravel().tolist()
    body = body_of(tensor(shape=[7, 5, 11], datatype=datatype, data=data))
    small = decode(body).feeds["x"]
    monkeypatch.setattr(tensors, "PIECE_BYTES", 64)
    large = decode(body).feeds["x"]
    assert (large.dtype, large.shape) == (small.dtype, small.shape)
    np.testing.assert_array_equal(large, small)


@pytest.mark.parametrize(
    "data",
    ["[[1,2],[3]]", "[[[1,2]],[[3,4]]]", '[[1,2],[3,"4"]]', "[[1,2],[3,null]]", "[{},{}]", "[[1,2],[3,4],[5]]", "[[1,2,3,4]]"],
)
def test_large_data_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(tensors, "PIECE_BYTES", 4)
    body = b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":%b}]}' % data.encode()
    with pytest.raises(RequestError):
        decode(body)


def test_large_replies_are_written_as_small_ones_are() -> None:
    array = np.random.default_rng(2).standard_normal(50_000).astype(np.float32)
    reply, length = codec.encode({"model_name": "m"}, [("y", array, False)])
    assert length is None
    np.testing.assert_array_equal(np.array(json.loads(reply)["outputs"][0]["data"], np.float32), array)


def test_brackets_in_strings_are_no_depth() -> None:
    body = body_of({"name": "x", "shape": [1], "datatype": "BYTES", "data": ["[" * 500 + '\\"' + "{" * 500]})
    assert decode(body).feeds["x"][0].startswith("[[[")


@pytest.mark.parametrize(
    ("name", "value"), [("priority", -1), ("priority", True), ("timeout", 1.5), ("timeout", 2**64), ("sequence_id", -1)]
)
def test_parameters_have_their_types(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        decode(body_of(tensor(), parameters={name: value}))


def test_slow_bytes_are_those_read_one_by_one() -> None:
    def head(datatype: str, name: str = "x") -> bytes:
        tensor = {"name": name, "shape": [8], "datatype": datatype, "parameters": {"binary_data_size": 1000}}
        return json.dumps({"inputs": [tensor]}).encode()

    views, tail = head("FP32"), bytes(1000)
    assert codec.slow_bytes(views + tail, len(views)) == len(views)
    for slow in (head("BYTES"), head("BOOL"), head("BYTES").replace(b"BYTES", b"\\u0042YTES"), b""):
        assert codec.slow_bytes(slow + tail, len(slow)) == len(slow) + 1000
