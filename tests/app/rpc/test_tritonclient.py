"""Every call of the unmodified tritonclient[grpc], sync and aio, works with a server process, and answers what HTTP answers."""

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
import tritonclient.http as sync_http
from tritonclient.utils import InferenceServerException

from bench.local import free_port
from tests.app.demo import IMAGES
from tests.app.oip import test_tritonclient as over_http
from tests.app.oip.test_tritonclient import VALUES
from tests.app.servers import Server, running, write_models

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    folder = tmp_path_factory.mktemp("triton")
    models = folder / "models"
    models.mkdir()
    port = free_port()
    settings = {"EDGEWISE_FILE_UPLOADS": "true", "EDGEWISE_GRPC_PORT": str(port)}
    with running(folder, write_models(models), environment=settings) as found:
        yield found, f"127.0.0.1:{port}"


@pytest.fixture(scope="module", params=["sync", "aio"])
def call(request: pytest.FixtureRequest, server: tuple[Server, str]) -> Iterator[Call]:
    """Return a function that calls a method of either client by name: call("infer", …)."""
    if request.param == "sync":
        client = sync_grpc.InferenceServerClient(server[1])
        yield lambda name, *arguments, **options: getattr(client, name)(*arguments, **options)
        client.close()
        return
    loop = asyncio.new_event_loop()

    async def make() -> aio_grpc.InferenceServerClient:
        return aio_grpc.InferenceServerClient(server[1])

    client = loop.run_until_complete(make())
    yield lambda name, *arguments, **options: loop.run_until_complete(getattr(client, name)(*arguments, **options))
    loop.run_until_complete(client.close())
    loop.close()


@pytest.fixture
def http(server: tuple[Server, str]) -> Iterator[sync_http.InferenceServerClient]:
    with sync_http.InferenceServerClient(server[0].address) as client:
        yield client


def tensor(array: np.ndarray, datatype: str, name: str = "x") -> sync_grpc.InferInput:
    made = sync_grpc.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def pixels(digit: int, rows: int = 1) -> np.ndarray:
    data = json.loads((IMAGES / f"{digit}.json").read_text())["inputs"][0]["data"]
    return np.array(data, np.float32).reshape(1, 1, 8, 8).repeat(rows, 0)


def image(digit: int, rows: int = 1) -> sync_grpc.InferInput:
    return tensor(pixels(digit, rows), "FP32", "image")


def refused(call: Call, *arguments: Any, **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value


def status(error: InferenceServerException) -> str:
    return str(error.status()).removeprefix("StatusCode.")


def test_health(call: Call) -> None:
    assert call("is_server_live") is True
    assert call("is_server_ready") is True
    assert call("is_model_ready", "digits") is True
    assert call("is_model_ready", "versioned", "3") is True
    assert call("is_model_ready", "versioned", "2") is False
    assert call("is_model_ready", "nothing") is False


def test_server_metadata(call: Call, http: sync_http.InferenceServerClient) -> None:
    assert call("get_server_metadata", as_json=True) == http.get_server_metadata()


@pytest.mark.parametrize("name", ["digits", "versioned", "id_bf16"])
def test_model_metadata(call: Call, http: sync_http.InferenceServerClient, name: str) -> None:
    found = call("get_model_metadata", name)
    expected = http.get_model_metadata(name)
    assert (found.name, list(found.versions), found.platform) == (name, expected["versions"], expected["platform"])
    for kind in ("inputs", "outputs"):
        got = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(found, kind)]
        assert got == expected[kind]
    assert status(refused(call, "get_model_metadata", "nothing")) == "NOT_FOUND"
    assert status(refused(call, "get_model_metadata", "versioned", "2")) == "NOT_FOUND"


@pytest.mark.parametrize("datatype", VALUES)
def test_model_config(call: Call, http: sync_http.InferenceServerClient, datatype: str) -> None:
    found = call("get_model_config", f"id_{datatype.lower()}").config
    expected = http.get_model_config(f"id_{datatype.lower()}")
    (port,) = found.input
    kind = sync_grpc.model_config_pb2.DataType.Name(port.data_type)
    assert {"name": port.name, "data_type": kind, "dims": list(port.dims)} == expected["input"][0]
    assert (found.platform, found.backend, found.max_batch_size) == (expected["platform"], "edgewise", 0)
    assert found.parameters["plan_id"].string_value == expected["parameters"]["plan_id"]["string_value"]
    assert found.WhichOneof("scheduling_choice") == ("dynamic_batching" if "dynamic_batching" in expected else None)


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_is_answered_as_over_http(call: Call, http: sync_http.InferenceServerClient, datatype: str) -> None:
    model, array = f"id_{datatype.lower()}", VALUES[datatype]
    found = call("infer", model, [tensor(array, datatype)]).as_numpy("y")
    other = http.infer(model, [over_http.tensor(array, datatype)]).as_numpy("y")
    assert found.dtype == other.dtype
    assert found.tolist() == other.tolist()
    assert found.tobytes() == other.tobytes() or found.dtype == object


def test_answers_are_those_of_http_to_the_bit(call: Call, http: sync_http.InferenceServerClient) -> None:
    images = np.random.default_rng(5).standard_normal((7, 1, 8, 8), np.float32)
    found = call("infer", "digits", [tensor(images, "FP32", "image")])
    other = http.infer("digits", [over_http.tensor(images, "FP32", "image")])
    for name in ("digit", "probabilities"):
        assert found.as_numpy(name).tobytes() == other.as_numpy(name).tobytes()


def test_bytes_that_are_no_utf8_pass_through(call: Call) -> None:
    array = np.array([[b"\xff\xfe\x00", b"plain"]], object)
    assert call("infer", "id_bytes", [tensor(array, "BYTES")]).as_numpy("y").tolist() == array.tolist()


def test_empty_tensors(call: Call) -> None:
    assert call("infer", "id_fp32", [tensor(np.zeros((0, 3), np.float32), "FP32")]).as_numpy("y").shape == (0, 3)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_compression_and_large_messages(call: Call, compression: str | None) -> None:
    array = np.random.default_rng(0).standard_normal((300, 8192)).astype(np.float32)
    found = call("infer", "id_fp32", [tensor(array, "FP32")], compression_algorithm=compression)
    np.testing.assert_array_equal(found.as_numpy("y"), array)


def test_version_and_request_id(call: Call) -> None:
    newest = call("infer", "versioned", [tensor(VALUES["FP32"], "FP32")], request_id="r-1").get_response()
    assert (newest.model_version, newest.id) == ("3", "r-1")
    oldest = call("infer", "versioned", [tensor(VALUES["FP32"], "FP32")], model_version="1").get_response()
    assert (oldest.model_version, oldest.id) == ("1", "")
    error = refused(call, "infer", "versioned", [tensor(VALUES["FP32"], "FP32")], model_version="7")
    assert status(error) == "NOT_FOUND"


def test_outputs_and_parameters(call: Call) -> None:
    wanted = [sync_grpc.InferRequestedOutput("digit")]
    options = {"priority": 1, "timeout": 60_000_000, "sequence_id": 7, "sequence_start": True, "sequence_end": True}
    found = call("infer", "digits", [image(7, rows=2)], outputs=wanted, parameters={"mine": "text", "other": 2}, **options)
    assert found.as_numpy("digit").tolist() == [7, 7]
    assert [output.name for output in found.get_response().outputs] == ["digit"]
    assert found.get_response().parameters["plan_id"].string_param == "default"
    assert found.get_response().parameters["batch_rows"].int64_param == 2


def test_classification(call: Call, http: sync_http.InferenceServerClient) -> None:
    wanted = [sync_grpc.InferRequestedOutput("probabilities", class_count=2)]
    found = call("infer", "digits", [image(7, rows=3)], outputs=wanted).as_numpy("probabilities")
    asked = [sync_http.InferRequestedOutput("probabilities", class_count=2)]
    other = http.infer("digits", [over_http.image(7, rows=3)], outputs=asked).as_numpy("probabilities")
    assert found.tolist() == other.tolist()


@pytest.mark.parametrize(
    ("model", "made", "code", "says"),
    [
        ("id_fp32", lambda: [tensor(VALUES["FP32"], "FP32", "z")], "INVALID_ARGUMENT", "unexpected inference input 'z'"),
        ("digits", lambda: [tensor(np.zeros((1, 64), np.float32), "FP32", "image")], "INVALID_ARGUMENT", "unexpected shape"),
        ("id_fp32", lambda: [tensor(VALUES["INT32"], "INT32")], "INVALID_ARGUMENT", "data-type is 'INT32'"),
        ("id_fp32", lambda: [], "INVALID_ARGUMENT", "expected 1 inputs but got 0 inputs for model 'id_fp32'"),
        ("id_fp32", lambda: [tensor(VALUES["FP32"], "FP32")] * 2, "INVALID_ARGUMENT", "given twice"),
        ("nothing", lambda: [tensor(VALUES["FP32"], "FP32")], "NOT_FOUND", "unknown model: 'nothing'"),
    ],
)
def test_refusals_say_what_http_says(call: Call, http, model: str, made: Callable[[], list[Any]], code: str, says: str) -> None:
    error = refused(call, "infer", model, made())
    assert status(error) == code
    assert says in error.message()


def test_statistics(call: Call, http: sync_http.InferenceServerClient) -> None:
    call("infer", "digits", [image(1)])
    before = http.get_inference_statistics("digits", "1")["model_stats"][0]
    call("infer", "digits", [image(1, rows=4)])
    refused(call, "infer", "digits", [])
    (after,) = call("get_inference_statistics", "digits", "1").model_stats
    assert after.inference_count - before["inference_count"] == 4
    assert after.inference_stats.fail.count - before["inference_stats"]["fail"]["count"] == 1
    same = http.get_inference_statistics("digits", "1")["model_stats"][0]
    assert after.inference_stats.success.ns == same["inference_stats"]["success"]["ns"]
    assert [batch.batch_size for batch in after.batch_stats] == [batch["batch_size"] for batch in same["batch_stats"]]
    assert after.memory_usage[0].byte_size == same["memory_usage"][0]["byte_size"] > 0
    assert {entry.name for entry in call("get_inference_statistics").model_stats} >= {"digits", "versioned"}
    assert status(refused(call, "get_inference_statistics", "nothing")) == "INVALID_ARGUMENT"


def test_trace_settings(call: Call) -> None:
    def shown(reply: Any) -> dict[str, list[str]]:
        return {key: list(setting.value) for key, setting in reply.settings.items()}

    assert shown(call("get_trace_settings"))["trace_level"] == ["OFF"]
    changed = shown(call("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "2"}))
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS"], ["2"])
    own = shown(call("update_trace_settings", model_name="digits", settings={"trace_level": ["OFF"]}))
    assert (own["trace_level"], own["trace_rate"]) == (["OFF"], ["2"])
    assert status(refused(call, "update_trace_settings", settings={"trace_file": "/tmp/x"})) == "UNIMPLEMENTED"
    assert status(refused(call, "update_trace_settings", settings={"trace_rate": "many"})) == "INVALID_ARGUMENT"
    assert status(refused(call, "get_trace_settings", model_name="nothing")) == "NOT_FOUND"
    call("update_trace_settings", model_name="digits", settings={"trace_level": None})
    cleared = shown(call("update_trace_settings", settings={"trace_level": None, "trace_rate": None}))
    assert (cleared["trace_level"], cleared["trace_rate"]) == (["OFF"], ["1000"])


def test_log_settings(call: Call) -> None:
    assert call("get_log_settings").settings["log_info"].bool_param is True
    changed = call("update_log_settings", {"log_info": False, "log_verbose_level": 1}).settings
    assert (changed["log_info"].bool_param, changed["log_verbose_level"].uint32_param) == (False, 1)
    assert status(refused(call, "update_log_settings", {"log_file": "/tmp/x"})) == "UNIMPLEMENTED"
    assert call("update_log_settings", {"log_info": True, "log_verbose_level": 0}).settings["log_info"].bool_param is True


def test_repository_index(call: Call, server: tuple[Server, str]) -> None:
    (server[0].models / "new.onnx").write_bytes(b"no model")
    rows = {(row.name, row.version): row for row in call("get_model_repository_index").models}
    assert rows["versioned", "3"].state == "READY"
    assert rows["new", ""].state == ""
    (server[0].models / "new.onnx").unlink()


def test_unload_and_load(call: Call) -> None:
    call("unload_model", "id_int8", unload_dependents=True)
    assert call("is_model_ready", "id_int8") is False
    rows = {row.name: row for row in call("get_model_repository_index").models}
    assert (rows["id_int8"].state, rows["id_int8"].reason) == ("UNAVAILABLE", "unloaded")
    assert status(refused(call, "infer", "id_int8", [tensor(VALUES["INT8"], "INT8")])) == "UNAVAILABLE"
    call("load_model", "id_int8")
    assert call("infer", "id_int8", [tensor(VALUES["INT8"], "INT8")]).as_numpy("y").dtype == np.int8
    assert status(refused(call, "load_model", "nothing")) == "NOT_FOUND"
    assert status(refused(call, "unload_model", "nothing")) == "NOT_FOUND"


def test_load_with_another_config(call: Call) -> None:
    config = {"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [2], "max_queue_delay_microseconds": 100}}
    call("load_model", "versioned", config=json.dumps(config))
    found = call("get_model_config", "versioned").config
    assert (found.max_batch_size, list(found.input[0].dims)) == (4, [-1])
    assert list(found.dynamic_batching.preferred_batch_size) == [2]
    assert found.dynamic_batching.max_queue_delay_microseconds == 100
    assert status(refused(call, "load_model", "versioned", config="{")) == "INVALID_ARGUMENT"
    call("load_model", "versioned")
    assert call("get_model_config", "versioned").config.max_batch_size == 0


def test_load_with_files(call: Call) -> None:
    data = (IMAGES.parent / "models" / "digits.onnx").read_bytes()
    call("load_model", "uploaded", config="{}", files={"file:5/model.onnx": data})
    assert call("infer", "uploaded", [image(4)]).get_response().model_version == "5"
    assert status(refused(call, "load_model", "uploaded", files={"file:1/model.onnx": data})) == "INVALID_ARGUMENT"
    assert status(refused(call, "load_model", "uploaded", config="{}", files={"file:6/model.onnx": b"no"})) == "INVALID_ARGUMENT"
    call("unload_model", "uploaded")


def test_shared_memory_is_unimplemented(call: Call) -> None:
    calls: list[tuple[Any, ...]] = [
        ("get_system_shared_memory_status",),
        ("register_system_shared_memory", "r", "/key", 8),
        ("unregister_system_shared_memory",),
        ("get_cuda_shared_memory_status",),
        ("register_cuda_shared_memory", "r", b"aGFuZGxl", 0, 8),
        ("unregister_cuda_shared_memory",),
    ]
    for item in calls:
        error = refused(call, *item)
        assert (status(error), "shared memory is not supported" in error.message()) == ("UNIMPLEMENTED", True)
    made = sync_grpc.InferInput("x", [1, 3], "FP32")
    made.set_shared_memory("r", 12)
    assert status(refused(call, "infer", "id_fp32", [made])) == "UNIMPLEMENTED"


def test_async_infer_of_the_sync_client(server: tuple[Server, str]) -> None:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with sync_grpc.InferenceServerClient(server[1]) as client:
        for _ in range(8):
            client.async_infer("digits", [image(5)], lambda result, error: found.put((result, error)))
        answers = [found.get(timeout=60) for _ in range(8)]
    assert [error for _, error in answers] == [None] * 8
    assert {result.as_numpy("digit").tolist()[0] for result, _ in answers} == {5}


def test_a_stream_answers_in_order_and_goes_on_after_errors(server: tuple[Server, str]) -> None:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with sync_grpc.InferenceServerClient(server[1]) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        for number in range(40):
            model = "nothing" if number == 20 else "digits"
            client.async_stream_infer(model, [image(number % 10)], request_id=str(number))
        answers = [found.get(timeout=60) for _ in range(40)]
        client.stop_stream()
    for number, (result, error) in enumerate(answers):
        if number == 20:
            assert "unknown model: 'nothing'" in error.message()
        else:
            assert (error, result.get_response().id, result.as_numpy("digit").tolist()) == (None, str(number), [number % 10])


def test_a_stream_of_the_aio_client(server: tuple[Server, str]) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(10):
            yield {"model_name": "digits", "inputs": [image(number)], "request_id": str(number)}

    async def run() -> list[tuple[Any, Any]]:
        async with aio_grpc.InferenceServerClient(server[1]) as client:
            return [answer async for answer in client.stream_infer(requests())]

    answers = asyncio.run(run())
    assert [error for _, error in answers] == [None] * 10
    assert [result.as_numpy("digit").tolist() for result, _ in answers] == [[number] for number in range(10)]


def test_every_call_of_the_client_is_made_here() -> None:
    text = Path(__file__).read_text()
    for client in (sync_grpc.InferenceServerClient, aio_grpc.InferenceServerClient):
        calls = [name for name in vars(client) if not name.startswith("_")]
        assert len(calls) > 15
        assert [name for name in calls if f'"{name}"' not in text and f".{name}(" not in text] == []
