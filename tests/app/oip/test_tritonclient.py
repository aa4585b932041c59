"""Every call of the unmodified tritonclient[http], sync and aio, works with a server process."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException

from tests.app.demo import IMAGES
from tests.app.servers import KINDS, Server, running, write_models

Call = Callable[..., Any]

VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True]]),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "FP16": np.array([[-1.5, 0, 65504]], np.float16),
    "BF16": np.array([[-1.5, 0, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[-1.5, np.pi, 1e30]], np.float32),
    "FP64": np.array([[-1.5, np.pi, 1e300]], np.float64),
    "BYTES": np.array([[b"", "ä".encode(), b"\x00\x01"]], object),
}
JSON_TYPES = [name for name in VALUES if name not in ("FP16", "BF16")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("triton")
    models = folder / "models"
    models.mkdir()
    with running(folder, write_models(models), environment={"EDGEWISE_FILE_UPLOADS": "true"}) as found:
        yield found


@pytest.fixture(scope="module", params=["sync", "aio"])
def call(request: pytest.FixtureRequest, server: Server) -> Iterator[Call]:
    """Return a function that calls a method of either client by name: call("infer", …)."""
    if request.param == "sync":
        client = sync_http.InferenceServerClient(server.address, concurrency=4)
        yield lambda name, *arguments, **options: getattr(client, name)(*arguments, **options)
        client.close()
        return
    loop = asyncio.new_event_loop()

    async def make() -> aio_http.InferenceServerClient:
        return aio_http.InferenceServerClient(server.address)

    client = loop.run_until_complete(make())
    yield lambda name, *arguments, **options: loop.run_until_complete(getattr(client, name)(*arguments, **options))
    loop.run_until_complete(client.close())
    loop.close()


def tensor(array: np.ndarray, datatype: str, name: str = "x", binary: bool = True) -> sync_http.InferInput:
    made = sync_http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def image(digit: int, rows: int = 1) -> sync_http.InferInput:
    pixels = json.loads((IMAGES / f"{digit}.json").read_text())["inputs"][0]["data"]
    return tensor(np.array(pixels, np.float32).reshape(1, 1, 8, 8).repeat(rows, 0), "FP32", "image")


def refused(call: Call, *arguments: Any, **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    assert "exception in the client while decoding" not in str(caught.value)
    return caught.value


def test_health(call: Call) -> None:
    assert call("is_server_live") is True
    assert call("is_server_ready") is True
    assert call("is_model_ready", "digits") is True
    assert call("is_model_ready", "versioned", "3") is True
    assert call("is_model_ready", "versioned", "2") is False
    assert call("is_model_ready", "nothing") is False


def test_server_metadata(call: Call) -> None:
    found = call("get_server_metadata", query_params={"unknown": 1, "list": [1, 2]})
    assert found["name"] == "edgewise"
    assert {"binary_tensor_data", "model_repository", "statistics", "trace", "logging"} <= set(found["extensions"])
    assert not [name for name in found["extensions"] if "shared_memory" in name]


def test_model_metadata(call: Call) -> None:
    found = call("get_model_metadata", "versioned")
    assert (found["name"], found["versions"], found["platform"]) == ("versioned", ["1", "3"], "onnx_onnxv1")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert refused(call, "get_model_metadata", "nothing").status() == "404"
    assert refused(call, "get_model_metadata", "versioned", "2").status() == "404"
    assert refused(call, "get_model_metadata", "a name/with slash").status() == "404"


@pytest.mark.parametrize("datatype", VALUES)
def test_model_config(call: Call, datatype: str) -> None:
    found = call("get_model_config", f"id_{datatype.lower()}")
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    assert found["input"] == [{"name": "x", "data_type": kind, "dims": [-1, -1]}]
    assert (found["platform"], found["max_batch_size"]) == ("onnx_onnxv1", 0)


@pytest.mark.parametrize("datatype", VALUES)
def test_binary_inference_of_every_datatype(call: Call, datatype: str) -> None:
    found = call("infer", f"id_{datatype.lower()}", [tensor(VALUES[datatype], datatype)])
    array = found.as_numpy("y")
    assert array.dtype == VALUES[datatype].dtype
    np.testing.assert_array_equal(array, VALUES[datatype])


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_json_inference_of_every_datatype(call: Call, datatype: str) -> None:
    wanted = [sync_http.InferRequestedOutput("y", binary_data=False)]
    found = call("infer", f"id_{datatype.lower()}", [tensor(VALUES[datatype], datatype, binary=False)], outputs=wanted)
    array = found.as_numpy("y")
    expected = VALUES[datatype]
    if datatype == "BYTES":
        array, expected = array.astype(str), np.array([["", "ä", "\x00\x01"]])
    np.testing.assert_array_equal(array, expected)


def test_json_of_half_floats_says_use_binary(call: Call) -> None:
    wanted = [sync_http.InferRequestedOutput("y", binary_data=False)]
    error = refused(call, "infer", "id_fp16", [tensor(VALUES["FP16"], "FP16")], outputs=wanted)
    assert error.status() == "400"
    assert "binary_data" in error.message()


def test_bytes_that_are_no_utf8_pass_through_binary_only(call: Call) -> None:
    array = np.array([[b"\xff\xfe\x00", b"plain"]], object)
    assert call("infer", "id_bytes", [tensor(array, "BYTES")]).as_numpy("y").tolist() == array.tolist()
    wanted = [sync_http.InferRequestedOutput("y", binary_data=False)]
    assert "UTF-8" in refused(call, "infer", "id_bytes", [tensor(array, "BYTES")], outputs=wanted).message()


def test_empty_tensors(call: Call) -> None:
    array = np.zeros((0, 3), np.float32)
    assert call("infer", "id_fp32", [tensor(array, "FP32")]).as_numpy("y").shape == (0, 3)


@pytest.mark.parametrize("outward", [None, "gzip", "deflate"])
@pytest.mark.parametrize("inward", [None, "gzip", "deflate"])
def test_compression(call: Call, outward: str | None, inward: str | None) -> None:
    array = np.arange(3000, dtype=np.float32).reshape(1, -1)
    options = {"request_compression_algorithm": outward, "response_compression_algorithm": inward}
    found = call("infer", "id_fp32", [tensor(array, "FP32")], **options)
    np.testing.assert_array_equal(found.as_numpy("y"), array)


def test_large_bodies(call: Call) -> None:
    array = np.random.default_rng(0).standard_normal((200, 1024)).astype(np.float32)
    np.testing.assert_array_equal(call("infer", "id_fp32", [tensor(array, "FP32")]).as_numpy("y"), array)


def test_version_and_request_id(call: Call) -> None:
    newest = call("infer", "versioned", [tensor(VALUES["FP32"], "FP32")], request_id="r-1").get_response()
    assert (newest["model_version"], newest["id"]) == ("3", "r-1")
    oldest = call("infer", "versioned", [tensor(VALUES["FP32"], "FP32")], model_version="1").get_response()
    assert oldest["model_version"] == "1"
    assert "id" not in oldest
    assert refused(call, "infer", "versioned", [tensor(VALUES["FP32"], "FP32")], model_version="7").status() == "404"


def test_outputs_and_parameters(call: Call) -> None:
    wanted = [sync_http.InferRequestedOutput("digit", binary_data=False), sync_http.InferRequestedOutput("probabilities")]
    options = {"priority": 1, "timeout": 60_000_000, "sequence_id": 7, "sequence_start": True, "sequence_end": True}
    found = call("infer", "digits", [image(7, rows=2)], outputs=wanted, parameters={"mine": "text", "other": 2}, **options)
    assert found.as_numpy("digit").tolist() == [7, 7]
    assert found.get_output("probabilities")["parameters"]["binary_data_size"] == 2 * 10 * 4
    assert found.get_output("nothing") is None
    assert found.get_response()["parameters"] == {"plan_id": "default", "batch_rows": 2}


def test_sequences_may_have_names(call: Call) -> None:
    options = {"sequence_id": "one", "sequence_start": True, "sequence_end": False}
    assert call("infer", "digits", [image(3)], **options).as_numpy("digit").tolist() == [3]


def test_classification(call: Call) -> None:
    wanted = [sync_http.InferRequestedOutput("probabilities", class_count=2)]
    found = call("infer", "digits", [image(7, rows=3)], outputs=wanted).as_numpy("probabilities")
    assert found.shape == (3, 2)
    value, index, *_ = found[0, 0].decode().split(":")
    assert (index, float(value) > 0.5) == ("7", True)


@pytest.mark.parametrize(
    ("model", "made", "says"),
    [
        ("id_fp32", lambda: [tensor(VALUES["FP32"], "FP32", "z")], "unexpected inference input 'z' for model 'id_fp32'"),
        ("digits", lambda: [tensor(np.zeros((1, 64), np.float32), "FP32", "image")], "unexpected shape for input 'image'"),
        ("id_fp32", lambda: [tensor(VALUES["INT32"], "INT32")], "data-type is 'INT32'"),
        ("id_fp32", lambda: [], "expected 1 inputs but got 0 inputs for model 'id_fp32'"),
        ("id_fp32", lambda: [tensor(VALUES["FP32"], "FP32")] * 2, "given twice"),
    ],
)
def test_refused_inputs(call: Call, model: str, made: Callable[[], list[Any]], says: str) -> None:
    error = refused(call, "infer", model, made())
    assert error.status() == "400"
    assert says in error.message()


def test_refused_outputs_and_models(call: Call) -> None:
    wanted = [sync_http.InferRequestedOutput("z")]
    assert (
        "unexpected inference output 'z'"
        in refused(call, "infer", "id_fp32", [tensor(VALUES["FP32"], "FP32")], outputs=wanted).message()
    )
    assert refused(call, "infer", "nothing", [tensor(VALUES["FP32"], "FP32")]).status() == "404"


def test_statistics(call: Call) -> None:
    def rows() -> dict[str, Any]:
        (entry,) = call("get_inference_statistics", "digits", "1")["model_stats"]
        return entry

    call("infer", "digits", [image(1)])
    before = rows()
    call("infer", "digits", [image(1, rows=4)])
    refused(call, "infer", "digits", [])
    after = rows()
    assert after["inference_count"] - before["inference_count"] == 4
    assert after["execution_count"] - before["execution_count"] == 1
    stats = after["inference_stats"]
    assert stats["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert all(stats[name]["ns"] > 0 for name in ("success", "compute_input", "compute_infer", "compute_output"))
    assert 4 in [batch["batch_size"] for batch in after["batch_stats"]]
    assert after["memory_usage"][0]["byte_size"] > 0
    assert {entry["name"] for entry in call("get_inference_statistics")["model_stats"]} >= {"digits", "versioned"}
    assert refused(call, "get_inference_statistics", "nothing").status() == "400"


def test_trace_settings(call: Call) -> None:
    assert call("get_trace_settings")["trace_level"] == ["OFF"]
    changed = call("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"], "trace_rate": 2, "trace_count": "10"})
    assert (changed["trace_level"], changed["trace_rate"], changed["trace_count"]) == (["TIMESTAMPS"], "2", "10")
    own = call("update_trace_settings", model_name="digits", settings={"trace_level": ["OFF"]})
    assert (own["trace_level"], own["trace_rate"]) == (["OFF"], "2")
    assert call("update_trace_settings", model_name="digits", settings={"trace_level": None})["trace_level"] == ["TIMESTAMPS"]
    assert refused(call, "update_trace_settings", settings={"trace_file": "/tmp/x"}).status() == "501"
    assert refused(call, "update_trace_settings", settings={"trace_level": ["OFF", "TIMESTAMPS"]}).status() == "400"
    assert refused(call, "update_trace_settings", settings={"trace_rate": "many"}).status() == "400"
    assert refused(call, "get_trace_settings", model_name="nothing").status() == "404"
    cleared = call("update_trace_settings", settings={"trace_level": None, "trace_rate": None, "trace_count": None})
    assert (cleared["trace_level"], cleared["trace_rate"]) == (["OFF"], "1000")


def test_log_settings(call: Call) -> None:
    assert call("get_log_settings")["log_info"] is True
    changed = call("update_log_settings", {"log_info": False, "log_verbose_level": 1, "log_warning": None})
    assert (changed["log_info"], changed["log_verbose_level"], changed["log_warning"]) == (False, 1, True)
    assert refused(call, "update_log_settings", {"log_file": "/tmp/x"}).status() == "501"
    assert refused(call, "update_log_settings", {"log_verbose_level": -1}).status() == "400"
    assert call("update_log_settings", {"log_info": True, "log_verbose_level": 0})["log_info"] is True


def test_repository_index(call: Call, server: Server) -> None:
    (server.models / "new.onnx").write_bytes(b"no model")
    rows = {(row["name"], row.get("version")): row for row in call("get_model_repository_index")}
    assert rows["versioned", "3"]["state"] == "READY"
    assert rows["new", None] == {"name": "new"}
    (server.models / "new.onnx").unlink()


def test_unload_and_load(call: Call) -> None:
    call("unload_model", "id_int8", unload_dependents=True)
    assert call("is_model_ready", "id_int8") is False
    assert call("is_server_ready") is True
    rows = {row["name"]: row for row in call("get_model_repository_index")}
    assert (rows["id_int8"]["state"], rows["id_int8"]["reason"]) == ("UNAVAILABLE", "unloaded")
    assert refused(call, "infer", "id_int8", [tensor(VALUES["INT8"], "INT8")]).status() == "503"
    call("load_model", "id_int8")
    assert call("infer", "id_int8", [tensor(VALUES["INT8"], "INT8")]).as_numpy("y").dtype == np.int8
    assert refused(call, "load_model", "nothing").status() == "404"
    assert refused(call, "unload_model", "nothing").status() == "404"


def test_load_with_another_config(call: Call) -> None:
    config = {"max_batch_size": 4, "version_policy": {"specific": {"versions": [1]}}}
    call("load_model", "versioned", config=json.dumps(config))
    found = call("get_model_config", "versioned")
    assert (found["max_batch_size"], found["input"][0]["dims"], found["version_policy"]) == (4, [-1], config["version_policy"])
    assert call("get_model_metadata", "versioned")["versions"] == ["1"]
    error = refused(call, "infer", "versioned", [tensor(np.zeros((5, 1), np.float32), "FP32")])
    assert "inference request batch-size must be <= 4 for 'versioned'" in error.message()
    for bad in ("{", json.dumps({"name": "other"}), json.dumps({"max_batch_size": -1}), json.dumps({"surprise": 1})):
        assert refused(call, "load_model", "versioned", config=bad).status() == "400"
    assert call("get_model_config", "versioned")["max_batch_size"] == 4
    call("load_model", "versioned")
    assert call("get_model_metadata", "versioned")["versions"] == ["1", "3"]


def test_load_with_files(call: Call) -> None:
    data = (IMAGES.parent / "models" / "digits.onnx").read_bytes()
    call("load_model", "uploaded", config="{}", files={"file:5/model.onnx": data})
    assert call("infer", "uploaded", [image(4)]).get_response()["model_version"] == "5"
    assert refused(call, "load_model", "uploaded", files={"file:1/model.onnx": data}).status() == "400"
    assert refused(call, "load_model", "uploaded", config="{}", files={"file:1/../../x": data}).status() == "400"
    assert refused(call, "load_model", "uploaded", config="{}", files={"file:6/model.onnx": b"no model"}).status() == "400"
    assert call("infer", "uploaded", [image(4)]).get_response()["model_version"] == "5"
    call("unload_model", "uploaded")


def test_failed_reload_leaves_the_old_one(call: Call, server: Server) -> None:
    path = server.models / "id_int16.onnx"
    good = path.read_bytes()
    path.write_bytes(b"no model")
    error = refused(call, "load_model", "id_int16")
    path.write_bytes(good)
    assert error.status() == "400"
    assert str(server.models) not in error.message()
    assert call("infer", "id_int16", [tensor(VALUES["INT16"], "INT16")]).as_numpy("y").dtype == np.int16


def test_shared_memory_is_refused_with_501(call: Call) -> None:
    calls: list[tuple[Any, ...]] = [
        ("get_system_shared_memory_status",),
        ("register_system_shared_memory", "r", "/key", 8),
        ("unregister_system_shared_memory",),
        ("unregister_system_shared_memory", "r"),
        ("get_cuda_shared_memory_status",),
        ("register_cuda_shared_memory", "r", b"handle", 0, 8),
        ("unregister_cuda_shared_memory",),
    ]
    assert [refused(call, *item).status() for item in calls] == ["501"] * len(calls)
    made = sync_http.InferInput("x", [1, 3], "FP32")
    made.set_shared_memory("r", 12)
    assert refused(call, "infer", "id_fp32", [made]).status() == "501"


@pytest.mark.parametrize("name", ["id_fp32", "digits"])
def test_async_infer_of_the_sync_client(server: Server, name: str) -> None:
    with sync_http.InferenceServerClient(server.address, concurrency=4) as client:
        inputs = [image(5)] if name == "digits" else [tensor(VALUES["FP32"], "FP32")]
        waiting = [client.async_infer(name, inputs) for _ in range(8)]
        assert {found.get_result().get_response()["model_name"] for found in waiting} == {name}


def test_bodies_made_and_read_without_a_client(server: Server) -> None:
    body, json_bytes = sync_http.InferenceServerClient.generate_request_body([image(9)])
    with server.client() as client:
        reply = client.post("/v2/models/digits/infer", content=body, headers={"Inference-Header-Content-Length": str(json_bytes)})
    length = int(reply.headers["Inference-Header-Content-Length"])
    found = sync_http.InferenceServerClient.parse_response_body(reply.content, header_length=length)
    assert found.as_numpy("digit").tolist() == [9]


def test_every_call_of_the_client_is_made_here() -> None:
    text = Path(__file__).read_text()
    for client in (sync_http.InferenceServerClient, aio_http.InferenceServerClient):
        calls = [name for name in vars(client) if not name.startswith("_")]
        assert len(calls) > 15
        assert [name for name in calls if f'"{name}"' not in text and f".{name}(" not in text] == []


def test_every_datatype_is_served() -> None:
    assert set(KINDS) == set(VALUES)
