"""Add jobs to the service and wait for them, as a client does over HTTP."""

import time
from typing import Any

import httpx


def wait_for(client: httpx.Client, number: int, *states: str) -> dict[str, Any]:
    """Return the job once it is in one of the states. Without states, return it once it has ended."""
    for _ in range(2400):
        job: dict[str, Any] = client.get(f"/v1/jobs/{number}").json()
        if job["state"] in (states or ("done", "failed", "cancelled")):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def add(client: httpx.Client, **asked: object) -> dict[str, Any]:
    """Add a job and return it."""
    reply = client.post("/v1/jobs", json=asked)
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made
