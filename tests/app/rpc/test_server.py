"""The gRPC server beside that of HTTP: keys, limits, deadlines, clients that leave, metrics and the end of the service."""

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from app.errors import RequestError
from app.main import create_app
from app.rpc.messages import (
    HEALTH,
    SERVICE,
    HealthCheckRequest,
    HealthCheckResponse,
    ModelInferResponse,
    ModelStreamInferResponse,
    message,
)
from app.rpc.server import RpcServer
from app.service import Service
from app.settings import DEMO_MODELS, Settings
from app.watch.spans import Telemetry
from bench.local import free_port
from bench.waiting import until
from scheduler.store import Store
from tests.app.demo import SEVEN
from tests.app.engine import models
from tests.app.keys import make_key
from tests.app.rpc.serving import Rpc, digit, floats, serve, seven
from tests.app.servers import running, write_models


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'rpc.db'}"


def test_scopes_are_those_of_http(db: str) -> None:
    keys = {scope: make_key(db, scope) for scope in ("infer", "read", "admin")}
    changing = message("TraceSettingRequest")()
    changing.settings["trace_rate"].value.append("5")
    wanted = {
        "ServerLive": (b"", {"", "infer", "read", "admin"}),
        "ServerReady": (b"", {"", "infer", "read", "admin"}),
        "ServerMetadata": (b"", {"infer", "read", "admin"}),
        "ModelReady": (message("ModelReadyRequest")(name="digits"), {"infer", "read", "admin"}),
        "ModelMetadata": (message("ModelMetadataRequest")(name="digits"), {"infer", "read", "admin"}),
        "ModelConfig": (message("ModelConfigRequest")(name="digits"), {"infer", "read", "admin"}),
        "ModelStatistics": (b"", {"infer", "read", "admin"}),
        "RepositoryIndex": (b"", {"read", "admin"}),
        "RepositoryModelLoad": (message("RepositoryModelLoadRequest")(model_name="digits"), {"admin"}),
        "ModelInfer": (seven(), {"infer", "admin"}),
        "TraceSetting": (b"", {"read", "admin"}),
        "LogSettings": (b"", {"read", "admin"}),
    }
    with serve(db=db, key_refresh_s=0.1) as rpc:
        for name, (asked, allowed) in {**wanted, "changes of TraceSetting": (changing, {"admin"})}.items():
            for scope in ("", "infer", "read", "admin"):
                method = name.split()[-1]
                if scope in allowed:
                    rpc.ask(method, asked, keys.get(scope, ""))
                else:
                    code, says = rpc.refused(method, asked, keys.get(scope, ""))
                    assert code == ("PERMISSION_DENIED" if scope else "UNAUTHENTICATED"), (name, scope)
                    assert "API key: " in says


def test_keys_are_refused_before_the_message_is_read(db: str) -> None:
    key = make_key(db, "read")
    with serve(db=db) as rpc:
        call = rpc.channel.stream_unary(f"/{SERVICE}/ModelInfer")
        held = threading.Event()

        def never() -> Iterator[bytes]:
            held.wait(60)
            yield b""

        try:
            for metadata, code in (([], "UNAUTHENTICATED"), ([("x-api-key", key)], "PERMISSION_DENIED")):
                with pytest.raises(grpc.RpcError) as caught:
                    call(never(), timeout=60, metadata=metadata)
                assert caught.value.code().name == code
        finally:
            held.set()


def test_rates_are_counted_over_both_transports(db: str) -> None:
    key = make_key(db, "infer", rate_per_s=1)
    with serve(db=db) as rpc:
        header = {"Authorization": f"Bearer {key}"}
        codes = []
        for _ in range(4):
            codes.append(rpc.http.get("/v2", headers=header).status_code == 200)
            with contextlib.suppress(grpc.RpcError):
                rpc.ask("ServerMetadata", key=key)
                codes.append(True)
        assert codes.count(True) <= 4
        with pytest.raises(grpc.RpcError) as caught:
            rpc.ask("ServerMetadata", key=key)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1


def test_administrators_are_audited(db: str) -> None:
    key = make_key(db, "admin")
    with serve(db=db) as rpc:
        rpc.ask(
            "RepositoryModelLoad",
            message("RepositoryModelLoadRequest")(model_name="digits"),
            key,
            metadata=[("x-request-id", "a-1")],
        )
    with Store(db) as store:
        (entry,) = store.audit.page().items
    assert (entry.action, entry.target, entry.request_id, entry.actor.endswith(" test")) == ("model.load", "digits", "a-1", True)


def test_request_ids_metrics_and_logs(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(db=db) as rpc:
        call = rpc.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer, details = call.with_call(seven().SerializeToString(), metadata=[("x-request-id", "mine")], timeout=60)
        assert (digit(answer), dict(details.initial_metadata())["x-request-id"]) == (7, "mine")
        _, details = call.with_call(seven().SerializeToString(), metadata=[("x-request-id", "not well formed")], timeout=60)
        assert len(dict(details.initial_metadata())["x-request-id"]) == 32
        rpc.refused("ModelInfer", floats("nothing", np.zeros(1, np.float32)))
        route = f'edgewise_request_duration_seconds_count{{method="gRPC",route="/{SERVICE}/ModelInfer"'
        until(lambda: f'{route},status="NOT_FOUND"}} 1.0' in rpc.http.get("/metrics").text)
        text = rpc.http.get("/metrics").text
    assert f'{route},status="OK"}} 2.0' in text
    assert 'nv_inference_request_success{model="digits",version="1"} 2.0' in text
    lines = [line for line in capsys.readouterr().out.splitlines() if "ModelInfer" in line]
    assert "mine" in lines[0]
    assert "batch_rows" in lines[0]


def test_one_engine_and_one_count_for_both_transports(db: str) -> None:
    with serve(db=db) as rpc:
        rpc.http.post("/v2/models/digits/infer", content=SEVEN)
        rpc.ask("ModelInfer", seven())
        stats = message("ModelStatisticsResponse").FromString(rpc.ask("ModelStatistics"))
    assert stats.model_stats[0].inference_stats.success.count == 2


def test_a_message_beyond_the_limit_is_refused(tmp_path: Path, db: str) -> None:
    models.wide(tmp_path)
    with serve(models=tmp_path, db=db, max_body_bytes=1 << 20) as rpc:
        fits, too_long = np.zeros((1 << 18) - 100, np.float32), np.zeros(1 << 18, np.float32)
        code, says = rpc.refused("ModelInfer", floats("nothing", fits))
        assert code == "NOT_FOUND"
        code, says = rpc.refused("ModelInfer", floats("nothing", too_long))
        assert (code, "larger than max (" in says) == ("RESOURCE_EXHAUSTED", True)
        code, says = rpc.refused("ModelInfer", floats("nothing", too_long), compression=grpc.Compression.Gzip)
        assert code == "RESOURCE_EXHAUSTED"
        reply = ModelInferResponse.FromString(rpc.ask("ModelInfer", floats("wide", np.zeros(2048, np.float32))))
        assert len(reply.raw_output_contents[0]) == 4 * 2048 * 1000  # answers may be larger


def test_requests_together_are_bounded_as_over_http(db: str) -> None:
    with serve(db=db, max_bytes_together=1 << 16) as rpc:
        code, says = rpc.refused("ModelInfer", floats("digits", np.zeros(1 << 15, np.float32)))
        assert (code, "hold more than 65536 bytes" in says) == ("UNAVAILABLE", True)
        assert rpc.service.held.now == 0
        assert digit(rpc.ask("ModelInfer", seven())) == 7


def test_what_is_no_message_and_what_is_no_method(db: str) -> None:
    with serve(db=db) as rpc:
        for name in ("ModelInfer", "ModelMetadata", "RepositoryModelLoad"):
            code, says = rpc.refused(name, b"\xff\xff")
            assert (code, says.startswith(f"request: not a inference.{name}Request")) == ("INVALID_ARGUMENT", True)
        assert rpc.refused("Surprise")[0] == "UNIMPLEMENTED"
        with pytest.raises(grpc.RpcError) as caught:
            rpc.channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter(()), timeout=60)
        assert (caught.value.code().name, "no message" in caught.value.details()) == ("INVALID_ARGUMENT", True)
        assert digit(rpc.ask("ModelInfer", seven())) == 7


def test_a_client_that_sends_no_message_is_cut_in_time(db: str) -> None:
    with serve(db=db, body_timeout_s=0.2) as rpc:
        held = threading.Event()

        def never() -> Iterator[bytes]:
            held.wait(60)
            yield b""

        try:
            calls = {
                "ModelInfer": lambda path: rpc.channel.stream_unary(path)(never(), timeout=60),
                "ModelStreamInfer": lambda path: list(rpc.channel.stream_stream(path)(never(), timeout=60)),
            }
            for name, call in calls.items():
                with pytest.raises(grpc.RpcError) as caught:
                    call(f"/{SERVICE}/{name}")
                assert caught.value.code().name == "DEADLINE_EXCEEDED"
                assert caught.value.details() == "request: no message within 0.2 s"
        finally:
            held.set()


def idle(rpc: Rpc) -> bool:
    return rpc.service.engine.pending == 0 and rpc.service.held.now == 0


def test_a_deadline_stops_the_run(tmp_path: Path, db: str) -> None:
    models.slow(tmp_path, 5_000_000)
    with serve(models=tmp_path, db=db) as rpc:
        began = time.monotonic()
        code, _ = rpc.refused("ModelInfer", floats("slow", np.zeros(4, np.float32)), timeout=1.0)
        assert code == "DEADLINE_EXCEEDED"
        until(lambda: idle(rpc), 30)
        assert time.monotonic() - began < 25
        stats = rpc.service.statistics.of("slow", "1")
        until(lambda: stats.pending == 0)
        assert stats.fail.count == 1


def test_the_request_s_own_timeout_is_a_status(tmp_path: Path, db: str) -> None:
    models.slow(tmp_path, 5_000_000)
    with serve(models=tmp_path, db=db) as rpc:
        asked = floats("slow", np.zeros(4, np.float32))
        asked.parameters["timeout"].int64_param = 300_000
        code, says = rpc.refused("ModelInfer", asked)
        assert code == "DEADLINE_EXCEEDED"
        assert "not done at its deadline" in says


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_stops_its_runs(tmp_path: Path, db: str, streamed: bool) -> None:
    models.slow(tmp_path, 5_000_000)
    with serve(models=tmp_path, db=db) as rpc:
        asked = floats("slow", np.zeros(4, np.float32)).SerializeToString()
        if streamed:
            held = threading.Event()

            def requests() -> Iterator[bytes]:
                yield asked
                yield asked
                held.wait(60)

            call = rpc.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(requests())
        else:
            call = rpc.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(asked)
        statistics = rpc.service.statistics.of("slow", "1")
        until(lambda: statistics.pending == (2 if streamed else 1))
        call.cancel()
        until(lambda: statistics.pending == 0 and idle(rpc), 30)
        assert statistics.failures["CANCELED"] == (2 if streamed else 1)
        if streamed:
            held.set()


def test_a_stream_reads_no_further_than_it_answers(tmp_path: Path, db: str) -> None:
    models.slow(tmp_path, 5_000_000)
    with serve(models=tmp_path, db=db) as rpc:
        asked = floats("slow", np.zeros(4, np.float32)).SerializeToString()
        sent: list[int] = []

        def requests() -> Iterator[bytes]:
            for number in range(500):
                sent.append(number)
                yield asked

        call = rpc.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(requests())
        statistics = rpc.service.statistics.of("slow", "1")
        until(lambda: statistics.pending >= 16)
        time.sleep(0.3)
        assert 16 <= statistics.pending <= 18
        call.cancel()
        until(lambda: statistics.pending == 0 and idle(rpc), 30)


def test_errors_in_a_stream_are_answers(db: str) -> None:
    with serve(db=db, max_bytes_together=1 << 16) as rpc:
        wrong = [b"\xff", floats("digits", np.zeros(1 << 15, np.float32)).SerializeToString(), seven().SerializeToString()]
        call = rpc.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(wrong), timeout=60)
        answers = [ModelStreamInferResponse.FromString(raw) for raw in call]
        assert [answer.error_message[:12] for answer in answers[:2]] == ["request: not", "body: reques"]
        assert digit(answers[2].infer_response.SerializeToString()) == 7
        until(lambda: idle(rpc))


def test_a_message_beyond_the_limit_ends_its_stream(db: str) -> None:
    with serve(db=db, max_body_bytes=1 << 20) as rpc:
        asked = [seven().SerializeToString(), floats("digits", np.zeros(1 << 18, np.float32)).SerializeToString()]
        call = rpc.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(asked), timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        until(lambda: idle(rpc))


def test_more_connections_than_allowed_are_closed(db: str) -> None:
    with serve(db=db, max_connections=3) as rpc, contextlib.ExitStack() as opened:
        rpc.ask("ServerLive")
        for _ in range(3):
            opened.enter_context(socket.create_connection(("127.0.0.1", rpc.port)))
        with (
            pytest.raises(grpc.RpcError),
            grpc.insecure_channel(f"127.0.0.1:{rpc.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as other,
        ):
            other.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=3)
        rpc.ask("ServerLive")


def test_more_calls_than_allowed_are_refused(tmp_path: Path, db: str) -> None:
    models.slow(tmp_path, 5_000_000)
    with serve(models=tmp_path, db=db, max_requests=2) as rpc:
        asked = floats("slow", np.zeros(4, np.float32)).SerializeToString()
        waiting = [rpc.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(asked) for _ in range(2)]
        statistics = rpc.service.statistics.of("slow", "1")
        until(lambda: statistics.pending == 2)
        port = rpc.port
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            with pytest.raises(grpc.RpcError) as caught:
                other.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=30)
            assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        for call in waiting:
            call.cancel()
        until(lambda: statistics.pending == 0)


def test_health_check_of_probes(db: str) -> None:
    make_key(db, "infer")
    with serve(db=db) as rpc:
        check = rpc.channel.unary_unary(f"/{HEALTH}/Check")
        assert HealthCheckResponse.FromString(check(b"", timeout=60)).status == 1
        assert (
            HealthCheckResponse.FromString(check(HealthCheckRequest(service=SERVICE).SerializeToString(), timeout=60)).status == 1
        )
        with pytest.raises(grpc.RpcError) as caught:
            check(HealthCheckRequest(service="other").SerializeToString(), timeout=60)
        assert caught.value.code().name == "NOT_FOUND"
        rpc.service.begin_drain(1)
        assert HealthCheckResponse.FromString(check(b"", timeout=60)).status == 2
        assert message("ServerReadyResponse").FromString(rpc.ask("ServerReady")).ready is False


def test_a_port_that_is_taken_stops_the_start(db: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = Service(Settings(models=DEMO_MODELS, db=db, grpc_port=port), Telemetry())
        with pytest.raises(RequestError, match=f"EDGEWISE_GRPC_PORT: cannot listen on 127.0.0.1:{port}"):
            asyncio.run(RpcServer(made).start())


def test_without_the_extra_the_service_says_what_to_install(monkeypatch: pytest.MonkeyPatch, db: str) -> None:
    for name in [name for name in sys.modules if name.startswith("app.rpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(RequestError, match=r"EDGEWISE_GRPC_PORT: gRPC needs grpc, install edgewise\[grpc\]"):
        create_app(Settings(models=DEMO_MODELS, db=db, grpc_port=0))


def test_without_a_port_nothing_of_grpc_is_there(db: str) -> None:
    app = create_app(Settings(models=DEMO_MODELS, db=db))
    assert app.state.service.transports == []


def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    folder, port = tmp_path / "models", free_port()
    folder.mkdir()
    write_models(folder)
    models.slow(folder, 300_000)
    environment = {"EDGEWISE_GRPC_PORT": str(port), "EDGEWISE_GRACE_S": "0"}
    with running(tmp_path, folder, environment=environment) as server, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        waiting = infer.future(floats("slow", np.zeros(4, np.float32)).SerializeToString())
        with server.client() as client:
            until(lambda: 'pending_request_count{model="slow",version="1"} 1.0' in client.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        reply = ModelInferResponse.FromString(waiting.result(60))
        assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [300_000.0] * 4
        server.process.wait(30)


def test_a_compressed_flood_is_refused(db: str) -> None:
    """200 MB of zeros come as 200 kB; the limit is of what they inflate to."""
    with serve(db=db, max_body_bytes=1 << 20) as rpc:
        code, _ = rpc.refused("ModelInfer", bytes(200 << 20), compression=grpc.Compression.Deflate)
        assert code == "RESOURCE_EXHAUSTED"
        assert digit(rpc.ask("ModelInfer", seven())) == 7
