"""The log line and the metric of every request, whichever transport carried it, and the id that it is known by."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

import structlog

from app.watch.metrics import Metrics
from kernels.record import record

log = structlog.get_logger("edgewise.request")

MAX_PATH: Final = 256
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@record
class Ended:
    """A request that has ended. route: the declared path, as a label. status: of HTTP, or the name of gRPC's code."""

    route: str
    method: str
    path: str
    status: int | str
    duration_ns: int


def choose_id(given: str) -> str:
    """Return the id that a caller gave its request if it is well-formed, else a new one."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def record_request(metrics: Metrics, ended: Ended, logged: Mapping[str, Any]) -> None:
    """Count a request and write its log line. logged: what else the line says."""
    metrics.requests.labels(ended.route, ended.method, str(ended.status)).observe(ended.duration_ns / 1e9)
    about = {"method": ended.method, "path": ended.path[:MAX_PATH], "status": ended.status, "duration_ns": ended.duration_ns}
    log.info("request", **about, **logged)
