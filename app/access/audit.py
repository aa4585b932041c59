"""The audit trail: which caller did what as an administrator."""

from __future__ import annotations

import time

import structlog
from fastapi import Request

from app.access.journal import Journal
from kernels.record import record
from scheduler.store import AuditEntry

log = structlog.get_logger("edgewise.audit")


@record
class Caller:
    """Who sent a request: the name of its principal, and the request's id."""

    name: str
    request_id: str


def caller_of(request: Request) -> Caller:
    """Return who sent a request over HTTP."""
    known = hasattr(request.state, "principal")
    return Caller(request.state.principal.name if known else "login", request.state.request_id)


class AuditTrail:
    """Entries go to the log at once, and through the journal to the database."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def record(self, caller: Caller, action: str, target: str) -> None:
        """Record an action, such as "model.load", that a caller did to `target`."""
        entry = AuditEntry(time.time_ns() // 1000, caller.name, action, target[:1024], caller.request_id)
        log.info("audit", actor=entry.actor, action=action, target=target[:128])
        self._journal.add(entry)
