"""What Prometheus scrapes. Labels are routes and served models, never what a request invents."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS = Histogram("edgewise_request_duration_seconds", "HTTP requests", ["route", "method", "status"], buckets=_SECONDS)
COMPUTE = Histogram("edgewise_compute_seconds", "Inference, without waiting", ["model", "version"], buckets=_SECONDS)
INFERENCES = Counter("nv_inference_count", "Rows inferred, batches counted by their size", ["model", "version"])
FAILURES = Counter("nv_inference_request_failure", "Inference requests that failed", ["model", "version"])
DRIFTS = Counter("edgewise_plan_drift", "Plans that took another time than they say")
