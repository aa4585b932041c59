"""Inference, metadata and errors of the protocol over a real socket."""

import gzip
import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from tests.app.demo import IMAGES, SEVEN


def infer(client: httpx.Client, body: bytes | dict, path: str = "/v2/models/digits/infer", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers=headers)


def binary_image() -> tuple[bytes, dict[str, str], bytes]:
    pixels = np.array(json.loads(SEVEN)["inputs"][0]["data"], "<f4").tobytes()
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": len(pixels)}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "digit", "parameters": {"binary_data": True}}]}).encode()
    return head + pixels, {"Inference-Header-Content-Length": str(len(head))}, pixels


def test_health_and_metadata(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2").json()["name"] == client.get("/v2/").json()["name"] == "edgewise"
    assert client.get("/v2/models").json() == {"models": ["broken", "digits", "echo"]}
    meta = client.get("/v2/models/digits").json()
    assert meta["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert client.get("/v2/models/digits/versions/1/ready").json() == {"name": "digits", "ready": True}


def test_json_inference(client: httpx.Client) -> None:
    reply = infer(client, {**json.loads(SEVEN), "id": "a1"}).json()
    assert reply["id"] == "a1"
    assert reply["model_version"] == "1"
    assert {output["name"]: output["data"] for output in reply["outputs"]}["digit"] == [7]


def test_binary_inference(client: httpx.Client) -> None:
    body, headers, _ = binary_image()
    reply = infer(client, body, **headers)
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    assert [output["name"] for output in json.loads(reply.content[:length])["outputs"]] == ["digit"]
    assert np.frombuffer(reply.content[length:], "<i8").tolist() == [7]


def test_raw_and_compressed_inference(client: httpx.Client) -> None:
    body, headers, pixels = binary_image()
    raw = infer(client, pixels, **{"Inference-Header-Content-Length": "0"})
    assert raw.status_code == 200
    packed = infer(client, gzip.compress(body), **headers, **{"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["Inference-Header-Content-Length"]) < len(packed.content)


def test_batch_and_classification(client: httpx.Client) -> None:
    rows = [json.loads((IMAGES / f"{digit}.json").read_text())["inputs"][0]["data"] for digit in range(10)]
    tensor = {"name": "image", "shape": [10, 1, 8, 8], "datatype": "FP32", "data": rows}
    outputs = [{"name": "digit"}, {"name": "probabilities", "parameters": {"classification": 1}}]
    reply = infer(client, {"inputs": [tensor], "outputs": outputs}).json()
    assert reply["outputs"][0]["data"] == list(range(10))
    assert [text.rsplit(":", 1)[1] for text in reply["outputs"][1]["data"]] == [str(digit) for digit in range(10)]


def test_strings_halves_and_flags(client: httpx.Client) -> None:
    half = np.array([1.5, 2], "<f2").tobytes()
    inputs = [
        {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ä", ""]},
        {"name": "half", "shape": [2], "datatype": "FP16", "parameters": {"binary_data_size": 4}},
        {"name": "flag", "shape": [2], "datatype": "BOOL", "data": [True, False]},
    ]
    wanted = [{"name": "text_out"}, {"name": "flag_out"}, {"name": "half_out", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    path = "/v2/models/echo/infer"
    reply = infer(client, head + half, path, **{"Inference-Header-Content-Length": str(len(head))})
    found = json.loads(reply.content[: int(reply.headers["Inference-Header-Content-Length"])])
    assert found["model_version"] == "3"
    assert [output.get("data") for output in found["outputs"]] == [["ä", ""], [True, False], None]
    assert reply.content.endswith(half)


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v2/models/nope", 404, "unknown model"),
        ("/v2/models/digits/versions/9", 404, "version 9"),
        ("/v2/models/digits/versions/x", 404, "version x"),
        ("/v2/models/broken/ready", 503, "not an ONNX file"),
        ("/v2/models/nope/stats", 400, "unknown model"),
        ("/v2/models/..%2f..%2fetc%2fpasswd", 404, ""),
        ("/v2/models/%2e%2e/ready", 404, ""),
        ("/nothing", 404, "Not Found"),
        ("/v1/models/nope", 404, "unknown model"),
    ],
)
def test_one_error_body_everywhere(client: httpx.Client, path: str, status: int, says: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert says in reply.json()["error"]


def test_wrong_method_is_405(client: httpx.Client) -> None:
    reply = client.get("/v2/models/digits/infer")
    assert (reply.status_code, list(reply.json())) == (405, ["error"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "pixels"}, "unexpected inference input 'pixels' for model 'digits'"),
        ({"shape": [1, 64]}, "unexpected shape for input 'image' for model 'digits'. Expected [-1,1,8,8], got [1,64]."),
        ({"datatype": "FP64"}, "data-type is 'FP64', model 'digits' expects 'FP32'"),
        ({"shape": [1, 1, 4, 16]}, "Expected [-1,1,8,8], got [1,1,4,16]."),
    ],
)
def test_wrong_tensors_are_refused_by_name(client: httpx.Client, change: dict, says: str) -> None:
    request = json.loads(SEVEN)
    request["inputs"][0].update(change)
    reply = infer(client, request)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def test_missing_input_and_unknown_output(client: httpx.Client) -> None:
    assert "expected 1 inputs but got 0" in infer(client, {"inputs": []}).json()["error"]
    reply = infer(client, {**json.loads(SEVEN), "outputs": [{"name": "z"}]})
    assert "unexpected inference output 'z'" in reply.json()["error"]


def test_body_past_the_limit_is_413(client: httpx.Client) -> None:
    assert infer(client, bytes(2 << 20)).status_code == 413
    chunks = (bytes(1 << 16) for _ in range(32))
    reply = client.post("/v2/models/digits/infer", content=chunks)
    assert (reply.status_code, list(reply.json())) == (413, ["error"])
    bomb = gzip.compress(bytes(64 << 20))
    assert infer(client, bomb, **{"Content-Encoding": "gzip"}).status_code == 413
    assert client.get("/v2/health/live").status_code == 200


def test_foreign_hosts_and_sites_are_refused(client: httpx.Client) -> None:
    assert client.get("/v2", headers={"Host": "evil.example"}).status_code == 421
    assert infer(client, SEVEN, Origin="http://evil.example").status_code == 403
    assert infer(client, SEVEN, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_profile_of_a_served_model(own_client: httpx.Client) -> None:
    reply = own_client.post("/v1/profiles", json={"model": "digits", "dims": {"batch": 2}}).json()
    single = own_client.post("/v1/profiles", json={"model": "digits", "shapes": {"image": [1, 1, 8, 8]}}).json()
    assert reply["profile"]["totals"]["macs"] == reply["macs"] == 2 * single["macs"] > 0
    refused = own_client.post("/v1/profiles", json={"model": "digits", "dims": {"batches": 2}})
    assert refused.status_code == 400
    assert "'batches' does not exist" in refused.json()["error"]
    assert own_client.post("/v1/profiles", json={"model": "digits", "extra": 1}).status_code == 400


def test_models_listing_tells_states(client: httpx.Client) -> None:
    states = {(m["name"], m["version"]): m["state"] for m in client.get("/v1/models").json()["models"]}
    assert states == {("broken", "1"): "UNAVAILABLE", ("digits", "1"): "READY", ("echo", "1"): "READY", ("echo", "3"): "READY"}


def test_metrics_count_by_model(client: httpx.Client) -> None:
    infer(client, SEVEN)
    text = client.get("/metrics").text
    assert 'nv_inference_count{model="digits",version="1"}' in text
    assert 'route="/v2/models/{name}/infer"' in text


def test_openapi_is_served(client: httpx.Client) -> None:
    assert "/v1/profiles" in client.get("/openapi.json").json()["paths"]


def test_devices_plans_and_strategies(own_client: httpx.Client) -> None:
    asked = {"model": "digits", "dims": {"batch": 1}, "max_threads": 1}
    made = own_client.post("/v1/plans", json=asked, timeout=120).json()
    assert made["plan"]["state"]["status"] == "current"
    assert made["plan"]["threads"] == 1
    assert own_client.get(f"/v1/plans/{made['id']}").json() == made
    explained = own_client.get(f"/v1/plans/{made['id']}/explain").json()
    assert explained[0]["node"] == "scale"
    assert {"chosen"} == {step["candidates"][0]["verdict"] for step in explained if step["candidates"]}
    fingerprint = made["plan"]["device_fingerprint"]
    assert own_client.get("/v1/devices").json()["items"][0]["fingerprint"] == fingerprint
    local = own_client.get("/v1/devices/local").json()
    assert local["profile"]["peaks"]
    assert own_client.get("/v1/strategies", params={"device": fingerprint}).json() == {"items": [], "next": None}
    assert made["id"] in [item["id"] for item in own_client.get("/v1/plans", params={"limit": 5}).json()["items"]]
    short = own_client.get("/v1/plans", params={"limit": 1, "steps": False}).json()["items"][0]
    assert (len(short["id"]), short["plan"]["steps"]) == (64, [])


def test_an_infeasible_plan_says_what_binds(own_client: httpx.Client) -> None:
    reply = own_client.post("/v1/plans", json={"model": "digits", "dims": {"batch": 1}, "max_memory_bytes": 10}, timeout=120)
    assert reply.status_code == 400
    assert "memory is" in reply.json()["error"]


def test_profiles_are_stored_and_paged(own_client: httpx.Client) -> None:
    numbers = [own_client.post("/v1/profiles", json={"model": "digits", "dims": {"batch": n}}).json()["id"] for n in (1, 2, 3)]
    first = own_client.get("/v1/profiles", params={"limit": 2}).json()
    assert [item["id"] for item in first["items"]] == numbers[:0:-1]
    second = own_client.get("/v1/profiles", params={"limit": 1, "cursor": first["next"]}).json()
    assert second["items"][0]["id"] == numbers[0]
    assert own_client.get(f"/v1/profiles/{numbers[0]}").json()["profile"]["totals"]["macs"] == 452864


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/plans/abc", 404),
        ("/v1/profiles/999999", 404),
        ("/v1/devices/0000000000000000", 404),
        ("/v1/profiles?limit=0", 400),
        ("/v1/profiles?cursor=x", 400),
        ("/v1/strategies?device=zz", 400),
    ],
)
def test_control_errors_have_the_one_shape(client: httpx.Client, path: str, status: int) -> None:
    reply = client.get(path)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


def test_inference_goes_on_without_a_database(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{broken}")) as client:
        assert infer(client, SEVEN).status_code == 200
        reply = client.post("/v1/profiles", json={"model": "digits", "dims": {"batch": 1}})
        assert (reply.status_code, list(reply.json())) == (503, ["error"])


def test_sequences_are_refused_and_shown_by_name(tmp_path: Path) -> None:
    """The protocol has tensors only; such a model is served for what it is, and its card says so."""
    port = helper.make_value_info("x", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None)))
    nodes = [helper.make_node("SequenceLength", ["x"], ["n"])]
    graph = helper.make_graph(nodes, "g", [port], [helper.make_tensor_value_info("n", TensorProto.INT64, [])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "listed.onnx")
    with serving(Settings(models=tmp_path, db=f"sqlite:///{tmp_path}/db")) as client:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
        reply = infer(client, body, "/v2/models/listed/infer")
        assert reply.status_code == 400
        assert "input 'x' of model 'listed' is a seq(f32), the protocol has tensors only" in reply.json()["error"]
        assert client.get("/v2/models/listed").json()["inputs"] == [{"name": "x", "datatype": "SEQ(F32)", "shape": [-1]}]
