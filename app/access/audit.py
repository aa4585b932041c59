"""The audit trail: which caller did what as an administrator."""

from __future__ import annotations

import time

import structlog
from fastapi import Request

from app.access.journal import Journal
from scheduler.store import AuditEntry

log = structlog.get_logger("edgewise.audit")


class AuditTrail:
    """Entries go to the log at once, and through the journal to the database."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def record(self, request: Request, action: str, target: str) -> None:
        """Record an action, such as "model.load", that the sender of this request did to `target`."""
        actor: str = request.state.principal.name if hasattr(request.state, "principal") else "login"
        entry = AuditEntry(time.time_ns() // 1000, actor, action, target[:1024], request.state.request_id)
        log.info("audit", actor=entry.actor, action=action, target=target[:128])
        self._journal.add(entry)
