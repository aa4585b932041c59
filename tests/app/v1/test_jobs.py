"""A flood of jobs: each caller may have so many that wait or run, and is told when to try again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from scheduler.store import Store, jobs
from tests.app.keys import bearer, make_key
from tests.scheduler.conftest import postgres_server, url  # noqa: F401  fixtures
from tests.scheduler.samples import DEVICE

PROBE = {"kind": "probe", "device": DEVICE.fingerprint}  # of a device whose worker never comes


@pytest.fixture
def db(url: str) -> str:  # noqa: F811
    with Store(url) as store:
        store.devices.save(DEVICE)
    return url


@pytest.fixture
def client(db: str) -> Iterator[httpx.Client]:
    with serving(Settings(models=DEMO_MODELS, db=db, jobs=False, max_jobs_per_caller=3, key_refresh_s=0.1)) as found:
        yield found


def flood(client: httpx.Client, count: int, key: str | None = None) -> list[httpx.Response]:
    """Ask from eight places at once."""
    replies: list[httpx.Response] = []

    def ask(times: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60, headers=bearer(key) if key else {}) as own:
            replies.extend([own.post("/v1/jobs", json=PROBE) for _ in range(times)])

    threads = [threading.Thread(target=ask, args=(count // 8,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def check_flood(replies: list[httpx.Response]) -> None:
    assert sorted(reply.status_code for reply in replies) == [200] * 3 + [429] * (len(replies) - 3)
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert (list(refused.json()), refused.headers["retry-after"]) == (["error"], "10")
    assert "3 of this caller are queued or running, the limit is 3" in refused.json()["error"]


def test_local_callers_share_a_limit(client: httpx.Client) -> None:
    replies = flood(client, 40)
    check_flood(replies)
    number = next(reply.json()["id"] for reply in replies if reply.status_code == 200)
    assert client.post(f"/v1/jobs/{number}/cancel").status_code == 200
    assert client.post("/v1/jobs", json=PROBE).status_code == 200
    assert client.post("/v1/jobs", json=PROBE).status_code == 429


def test_each_key_has_a_limit_of_its_own(db: str) -> None:
    first, second = make_key(db, "admin"), make_key(db, "admin")
    with serving(Settings(models=DEMO_MODELS, db=db, jobs=False, max_jobs_per_caller=3)) as client:
        check_flood(flood(client, 24, first))
        check_flood(flood(client, 24, second))


def test_all_callers_together_have_a_limit(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS", 2)
    assert [client.post("/v1/jobs", json=PROBE).status_code for _ in range(2)] == [200, 200]
    refused = client.post("/v1/jobs", json=PROBE)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
