"""Plans that a command line names: by a file that `plan --json` wrote, or by the id of a stored one or its first digits."""

from __future__ import annotations

from pathlib import Path

from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.plan import Plan
from scheduler.store import Here, Store


def find_plan(named: str, db: str | None) -> Plan:
    """Return the plan in a file, or the stored one with that id. Raises NotFoundError; PlanFormatError for a file without one."""
    path = Path(named)
    return Plan.from_json(path.read_bytes()) if path.is_file() else stored_plan(named, db)


def stored_plan(plan_id: str, db: str | None) -> Plan:
    """Return a stored plan with the state that it has on this device and build. Raises NotFoundError."""
    with Store(db) as store:
        return store.plans.get(plan_id, Here(local_fingerprint(), current_build())).plan
