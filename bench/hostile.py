"""Clients of the soak that misuse the service: what they send, and the one answer that each of them must get."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx
import onnx
from onnx import TensorProto, helper

from bench.observed import Client, Soak

TRIPS = 999_999  # of each of three loops inside one another: 10¹⁸ rounds
TIMEOUT_US = 300_000
LARGE_BYTES = 5_000_000
VAST_ELEMENTS = 1 << 42  # of float32: 16 TiB, asked for by a file of 100 bytes
JOB_STREAMS, JOBS_EACH = 8, 16  # more jobs together than a caller may have
HOSTS: Mapping[str, int] = {  # a Host header, and the status that it must get
    "evil.example": 421,
    "localhost.evil.example": 421,
    "127.0.0.1.evil.example:80": 421,
    "10.0.0.1": 421,
    "[::1].evil.example": 400,
    "user@localhost": 400,
}
ONE = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}


def endless() -> onnx.ModelProto:
    """Return a model of three Loops inside one another, which would run for years."""
    value, number, flag = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.BOOL
    nodes, inner = [helper.make_node("Add", ["s3", "one"], ["t3"])], "t3"
    for level in (3, 2, 1):
        ports = [value(f"i{level}", TensorProto.INT64, []), value(f"go{level}", flag, []), value(f"s{level}", number, [1])]
        results = [value(f"again{level}", flag, []), value(inner, number, [1])]
        nodes.append(helper.make_node("Identity", [f"go{level}"], [f"again{level}"]))
        body = helper.make_graph(nodes, f"body{level}", ports, results)
        carried, inner = (f"s{level - 1}", f"t{level - 1}") if level > 1 else ("x", "y")
        nodes = [helper.make_node("Loop", ["trips", "", carried], [inner], body=body)]
    constants = [
        helper.make_tensor("trips", TensorProto.INT64, [], [TRIPS]),
        helper.make_tensor("one", number, [1], [1]),
    ]
    return _model("endless", nodes[0], value("x", number, [1]), value("y", number, [1]), *constants)


def vast() -> onnx.ModelProto:
    """Return a model that would spread its input over 16 TiB."""
    value, number = helper.make_tensor_value_info, TensorProto.FLOAT
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [VAST_ELEMENTS])
    node = helper.make_node("Expand", ["x", "shape"], ["y"], "vast")
    return _model("vast", node, value("x", number, [1]), value("y", number, None), shape)


def hollow() -> onnx.ModelProto:
    """Return a model whose weight says that it has 16 TiB, and has no data."""
    value, number = helper.make_tensor_value_info, TensorProto.FLOAT
    weight = TensorProto(name="w", data_type=number, dims=[VAST_ELEMENTS])
    node = helper.make_node("Add", ["x", "w"], ["y"], "add")
    return _model("hollow", node, value("x", number, [1]), value("y", number, None), weight)


def _model(
    name: str, node: onnx.NodeProto, x: onnx.ValueInfoProto, y: onnx.ValueInfoProto, *constants: TensorProto
) -> onnx.ModelProto:
    graph = helper.make_graph([node], name, [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_models(folder: Path) -> None:
    """Write the models that the hostile clients ask for into the folder that is served."""
    for name, model in (("endless", endless()), ("vast", vast())):
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


async def out_of_time(soak: Soak, client: httpx.AsyncClient) -> None:
    """Run the endless model with a timeout: 504, whose reason is the deadline."""
    body = {**ONE, "parameters": {"timeout": TIMEOUT_US}}
    reply = await client.post("/v2/models/endless/infer", json=body)
    soak.note("endless run", reply, lambda r: "not done at its deadline" in r.json()["error"], status=504)
    await asyncio.sleep(1)


async def leaver(soak: Soak, client: httpx.AsyncClient) -> None:
    """Run the endless model without a timeout and leave. That its run ends is seen after the load, in the gauges."""
    content = json.dumps(ONE).encode()
    head = f"POST /v2/models/endless/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    _reader, writer = await asyncio.open_connection("127.0.0.1", soak.port)
    writer.write(head.encode() + content)
    await writer.drain()
    await asyncio.sleep(soak.random.random())
    writer.close()
    soak.count("leaver", "right")
    await asyncio.sleep(2)


async def large_body(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send a large body to a model that does not exist: 404, which reaches the client although the body was not needed."""
    reply = await client.post("/v2/models/nothing/infer", content=bytes(LARGE_BYTES))
    soak.note("large body", reply, lambda r: "nothing" in r.json()["error"], status=404)
    await asyncio.sleep(0.5)


async def vast_run(soak: Soak, client: httpx.AsyncClient) -> None:
    """Run a model that needs 16 TiB: 400 with the node and the limit, before anything is allocated."""
    reply = await client.post("/v2/models/vast/infer", json=ONE)
    soak.note("vast run", reply, lambda r: all(word in r.json()["error"] for word in ("'vast'", "limit")), status=400)
    await asyncio.sleep(1)


async def hollow_upload(soak: Soak, client: httpx.AsyncClient) -> None:
    """Upload a model whose weight is said to have 16 TiB: 400 with the limit, and no model of that name is known afterwards."""
    reply = await client.post("/v1/models", params={"name": "hollow"}, content=hollow().SerializeToString())
    soak.note("hollow upload", reply, lambda r: "the limit is" in r.json()["error"], status=400)
    reply = await client.get("/v2/models/hollow")
    soak.note("hollow model", reply, lambda r: "error" in r.json(), status=404)
    await asyncio.sleep(1)


async def job_flood(soak: Soak, client: httpx.AsyncClient) -> None:
    """Queue more jobs than a caller may have: those above the limit are 429 with Retry-After. Then cancel all that were taken."""
    await asyncio.sleep(5)
    taken: list[int] = []

    async def add() -> None:
        for _ in range(JOBS_EACH):
            reply = await client.post("/v1/jobs", json={"kind": "probe"})
            if reply.status_code == 200:
                taken.append(reply.json()["id"])
                soak.count("job flood", "queued")
            else:
                soak.note("job flood", reply, lambda r: "retry-after" in r.headers, status=429)

    await asyncio.gather(*(add() for _ in range(JOB_STREAMS)))
    soak.jobs += taken
    for number in taken:
        await cancel(soak, client, number)


async def cancel(soak: Soak, client: httpx.AsyncClient, number: int) -> None:
    """Cancel a queued job, once the service can, so that it does not count against its caller's limit."""
    while soak.going:
        reply = await client.post(f"/v1/jobs/{number}/cancel")
        soak.note("cancel", reply, lambda r: r.json()["state"] == "cancelled")
        if reply.status_code != 503:
            return
        await asyncio.sleep(0.5)


async def spoofer(soak: Soak, client: httpx.AsyncClient) -> None:
    """Name a host that is not the service's: refused before anything is done."""
    host, status = soak.random.choice(list(HOSTS.items()))
    reply = await client.post("/v2/repository/models/affine/unload", headers={"Host": host})
    soak.note("spoofed host", reply, lambda r: "error" in r.json(), status=status)
    await asyncio.sleep(0.2)


CLIENTS: Mapping[Client, int] = {
    out_of_time: 1,
    leaver: 1,
    large_body: 2,
    vast_run: 1,
    hollow_upload: 1,
    job_flood: 1,
    spoofer: 1,
}
ANSWERED = (
    "endless run",
    "leaver",
    "large body",
    "vast run",
    "hollow upload",
    "hollow model",
    "job flood",
    "cancel",
    "spoofed host",
)


def judge(soak: Soak, folder: Path) -> None:
    """Note as broken a hostile client that never got its answer, and what a refused upload left in the folder of models."""
    for who in ANSWERED:
        if not soak.seen.get(who, Counter())["right"]:
            soak.broken[f"{who}: never got the answer that it must get"] += 1
    for path in folder.iterdir():
        if path.name.startswith((".upload-", "hollow")):
            soak.broken[f"{path.name}: left by a refused upload"] += 1
