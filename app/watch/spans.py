"""OpenTelemetry traces, off by default: request (FastAPI's own span, with W3C trace context) → model → queue and compute.

Without an endpoint the SDK is not imported, and a request costs one comparison.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from app.errors import RequestError
from app.watch.statistics import Timed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


class Telemetry:
    """Records spans with a tracer provider; without one it does nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("edgewise") if provider is not None else None

    @property
    def config(self) -> TelemetryConfig:
        """FastAPI's telemetry configuration: request spans go to the same provider, and environment variables are ignored."""
        if self._provider is None:
            return _OFF
        return {**_OFF, "tracing": True, "operation_spans": False, "tracer_provider": self._provider}

    def record(self, name: str, version: str, request_id: str, timed: Timed) -> None:
        """Record the spans of an answered inference, below the request's span."""
        if self._tracer is None:
            return
        ended_ns = time.time_ns()
        outcome = timed.outcome
        attributes: dict[str, str | int] = {
            "model_name": name,
            "model_version": version,
            "request_id": request_id,
            "plan_id": outcome.plan_id,
            "batch_rows": outcome.batch_rows,
        }
        model = self._tracer.start_span("model", start_time=ended_ns - timed.total_ns, attributes=attributes)
        within = trace.set_span_in_context(model)
        computed_ns = ended_ns - timed.output_ns
        began_ns = computed_ns - outcome.compute_ns
        for step, start_ns, end_ns in (("queue", began_ns - outcome.queue_ns, began_ns), ("compute", began_ns, computed_ns)):
            self._tracer.start_span(step, within, start_time=start_ns).end(end_ns)
        model.end(ended_ns)

    def close(self) -> None:
        """Send the spans that wait."""
        if self._provider is not None:
            self._provider.shutdown()


def over_http(endpoint: str) -> Telemetry:
    """Return telemetry that sends spans to an OTLP/HTTP collector; none for "". Raises RequestError without the `otel` extra."""
    if not endpoint:
        return Telemetry()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise RequestError(500, "EDGEWISE_OTLP_ENDPOINT: traces need OpenTelemetry, install edgewise[otel]") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "edgewise"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Telemetry(provider)
