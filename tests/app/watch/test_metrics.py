"""Metrics have the names that dashboards use, spans belong to the caller's trace, and logs name the request and its plan."""

import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from app import logs
from app.engine.requests import Outcome
from app.main import create_app
from app.settings import DEMO_MODELS, Settings
from app.watch.flops import RunCosts, count
from app.watch.spans import Telemetry, over_http
from app.watch.statistics import ModelStatistics, Timed
from bench.local import serving
from bench.waiting import until
from scheduler.session import Session
from tests.app.demo import SEVEN

INFER = "/v2/models/digits/infer"


def settings(tmp_path: Path) -> Settings:
    return Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}")


def values(client: httpx.Client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_of_triton_and_histograms(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        for _ in range(3):
            assert client.post(INFER, content=SEVEN).status_code == 200
        assert client.post(INFER, content=b"{").status_code == 400
        found = values(client)
        of = '{model="digits",version="1"}'
        assert found[f"nv_inference_request_success{of}"] == 3
        assert found[f"nv_inference_count{of}"] == found[f"nv_inference_exec_count{of}"] == 3
        assert found['nv_inference_request_failure{model="digits",reason="OTHER",version="1"}'] == 1
        assert found['nv_inference_request_failure{model="digits",reason="BACKEND",version="1"}'] == 0
        assert found[f"nv_inference_pending_request_count{of}"] == 0
        assert found[f"nv_model_load_duration_secs{of}"] > 0
        times = [
            f"nv_inference_{part}_duration_us{of}" for part in ("request", "compute_input", "compute_infer", "compute_output")
        ]
        assert all(found[name] > 0 for name in times)
        for name in (
            "edgewise_inference_duration_seconds",
            "edgewise_queue_seconds",
            "edgewise_compute_seconds",
            "edgewise_batch_rows",
        ):
            assert found[f"{name}_count{of}"] == 3
            assert found[f'{name}_bucket{{le="+Inf",model="digits",version="1"}}'] == 3
        assert found['edgewise_plan_inferences{model="digits",plan="default",version="1"}'] == 3
        assert found["nv_cpu_memory_total_bytes"] > 0


def test_labels_are_never_what_a_request_invents(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        for path in ("/v2/models/invented/infer", "/invented", "/v1/invented"):
            client.post(path, content=SEVEN, headers={"X-Request-ID": "invented"})
        client.get("/v1/models")
        text = client.get("/metrics").text
        assert "invented" not in text
        assert 'route="/v1/models"' in text


def test_achieved_rate_once_the_shapes_are_counted(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        rate = 'edgewise_model_achieved_flops_per_second{model="digits",version="1"}'

        def is_counted() -> bool:
            client.post(INFER, content=SEVEN)
            return values(client)[rate] > 0

        until(is_counted)
        found = values(client)
        flops = found['edgewise_model_flops_total{model="digits",version="1"}']
        assert flops > 2 * 452_864
        assert 1e5 < found[rate] < 1e13
        assert found['edgewise_model_roof_percent{model="digits",version="1"}'] == 0  # nobody measured this device


def test_work_is_counted_once_and_goes_with_its_session() -> None:
    session, counts = Session(DEMO_MODELS / "digits.onnx", threads=1), RunCosts()
    shapes = (("image", (2, 1, 8, 8)),)
    assert counts.find(session, shapes) is None
    made = count(session, dict(shapes), None)
    assert (made.flops > 4 * 452_864, made.roof_ns) == (True, 0)
    counts.keep(session, shapes, made)
    assert counts.find(session, shapes) == made
    del session
    assert len(counts._counts) == 0


def test_a_batch_is_counted_by_shares() -> None:
    found = ModelStatistics()
    for rows in (1, 3):
        outcome = Outcome({}, queue_ns=10, compute_ns=4000, batch_rows=4, plan_id="p")
        found.succeeded(Timed(outcome, rows, input_ns=5, output_ns=5, total_ns=5000))
    shown = found.shown("m", "1", 0)
    assert (shown["inference_count"], shown["execution_count"]) == (4, 1)
    assert shown["inference_stats"]["compute_infer"] == {"count": 2, "ns": 4000}
    assert shown["batch_stats"][0]["batch_size"] == 4
    assert shown["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 4000}


def test_spans_carry_the_callers_trace(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    app = create_app(settings(tmp_path), Telemetry(provider))
    with serving(app.state.service.settings, app) as client:
        headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "X-Request-ID": "r-9"}
        client.post(INFER, content=SEVEN, headers=headers)

        def found() -> list[ReadableSpan]:  # others are of looks at readiness
            return [s for s in exporter.get_finished_spans() if format_trace_id(s.context.trace_id) == trace_id]

        until(lambda: any(span.name not in ("model", "queue", "compute") for span in found()))
        spans = {span.name: span for span in found()}
    model, compute = spans["model"], spans["compute"]
    (request,) = (span for name, span in spans.items() if name not in ("model", "queue", "compute"))
    assert format_span_id(request.parent.span_id) == parent_id
    assert model.parent.span_id == request.context.span_id
    assert compute.parent.span_id == model.context.span_id
    attributes = dict(model.attributes or {})
    assert (attributes["model_name"], attributes["request_id"], attributes["plan_id"]) == (
        "digits",
        "r-9",
        "default",
    )
    assert model.start_time <= spans["queue"].start_time <= compute.start_time <= compute.end_time <= model.end_time


def test_traces_are_off_by_default(tmp_path: Path) -> None:
    assert Settings().otlp_endpoint == ""
    assert over_http("").config["tracing"] is False
    made = over_http("http://127.0.0.1:9/v1/traces")
    assert made.config["tracing"] is True


def test_one_log_event_tells_request_model_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        with serving(settings(tmp_path)) as client:
            client.post(INFER, content=SEVEN, headers={"X-Request-ID": "r-7", "Authorization-Extra": "secret-value"})
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (event,) = (line for line in lines if line.get("request_id") == "r-7")
    assert (event["event"], event["model"], event["version"], event["plan"], event["status"]) == (
        "request",
        "digits",
        "1",
        "default",
        200,
    )
    assert min(event["queue_ns"], event["compute_ns"]) >= 0
    assert re.fullmatch(r"[0-9T:.\-]+Z", event["timestamp"])
    assert "secret-value" not in json.dumps(lines)


def test_timestamps_go_to_the_log_when_traces_are_asked_for(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as captured, serving(settings(tmp_path)) as client:
        client.post("/v2/trace/setting", json={"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"})
        for _ in range(10):
            client.post(INFER, content=SEVEN)
    events = [event for event in captured if event["event"] == "timestamps"]
    assert len(events) == 2
    assert events[0]["compute_infer_ns"] > 0


def test_what_was_asked_of_the_log_is_done() -> None:
    held = logs.LogSettings()
    held.update({"log_info": False, "log_format": "default"})
    with pytest.raises(structlog.DropEvent):
        held.passes(None, "info", {})
    with pytest.raises(structlog.DropEvent):
        held.passes(None, "debug", {})
    assert re.fullmatch(r"\d{4} \d\d:\d\d:\d\d\.\d{6}", held.passes(None, "warning", {})["timestamp"])


def test_plan_and_batch_are_in_the_reply(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        reply = client.post(INFER, content=SEVEN).json()
        assert reply["parameters"] == {"plan_id": "default", "batch_rows": 1}
        assert np.isfinite(reply["outputs"][1]["data"]).all()
