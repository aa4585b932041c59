"""A clock that is set by an hour while a service runs: deadlines, limits and leases do not follow it, calendar dates do."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from pydantic import ValidationError

from app.access import auth
from app.access.rates import Rates
from app.agent.agent import HttpDesk
from app.agent.client import ServiceClient
from app.errors import RequestError
from app.jobs.execution import DeskError
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from profiler.device.profile import DeviceProfile
from scheduler.jobs import JobOutcome, Kind, ProbeRequest
from scheduler.store import Here, Store, StoredKey
from scheduler.store.jobs import MAX_LEASE_S
from tests.app.demo import SEVEN
from tests.app.keys import bearer, make_key
from tests.disks import fill, small_disk
from tests.scheduler.samples import DEVICE, HERE, measurement

HOUR = 3600
NOTHING = Kind(ProbeRequest, False, lambda _: JobOutcome())


class Clock:
    """The calendar clock of this process; the monotonic one goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved_s = 0.0
        seconds, nanoseconds = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: seconds() + self.moved_s)
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + round(self.moved_s * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("moved_s", [-HOUR, HOUR])
def test_service_goes_on_over_a_clock_that_is_set(tmp_path: Path, clock: Clock, moved_s: float, machine: DeviceProfile) -> None:
    db = f"sqlite:///{tmp_path / 'clock.db'}"
    key = make_key(db, "admin")
    with Store(db) as store:
        store.devices.save(machine)
    settings = Settings(models=DEMO_MODELS, db=db, key_refresh_s=0.1, key_stale_s=10, plan_refresh_s=0.1)
    timed = orjson.dumps({**orjson.loads(SEVEN), "parameters": {"timeout": 30_000_000}})
    with serving(settings, kinds={"nothing": NOTHING}) as client:
        client.headers.update(bearer(key))

        def statuses() -> list[int]:
            infer = client.post("/v2/models/digits/infer", content=timed).status_code
            return [infer, *(client.get(path).status_code for path in ("/v2/health/ready", "/v1/live", "/v1/jobs"))]

        assert statuses() == [200] * 4
        clock.moved_s = moved_s
        for _ in range(5):
            assert statuses() == [200] * 4
            time.sleep(0.1)
        number = client.post("/v1/jobs", json={"kind": "nothing"}).json()["id"]
        until(lambda: client.get(f"/v1/jobs/{number}").json()["state"] == "done")


@pytest.mark.parametrize("moved_s", [-HOUR, HOUR])
def test_rates_do_not_follow_the_clock(clock: Clock, moved_s: float) -> None:
    rates = Rates(1.0)
    for _ in range(2):
        rates.take("caller", None)
    clock.moved_s = moved_s
    with pytest.raises(RequestError, match="more than 1 requests") as refused:
        rates.take("caller", None)
    assert int(refused.value.headers["Retry-After"]) == 1


def test_sessions_and_keys_end_by_the_calendar(clock: Clock) -> None:
    key = StoredKey("abc", "n", auth.digest_of("s"), ("read",), None, 0, time.time_ns() // 1000 + HOUR * 1_000_000, None, None)
    sessions = auth.Sessions("secret")
    cookie = sessions.make(key)
    for moved_s, session, active in ((-HOUR, True, True), (0, True, True), (2 * HOUR, True, False), (9 * HOUR, False, False)):
        clock.moved_s = moved_s
        assert (sessions.check(cookie, key), key.active(time.time_ns() // 1000)) == (session, active)


def test_no_service_gives_longer_leases_than_jobs_take() -> None:
    assert Settings(job_lease_s=MAX_LEASE_S).job_lease_s == MAX_LEASE_S
    with pytest.raises(ValidationError, match="less than or equal to 600"):
        Settings(job_lease_s=MAX_LEASE_S + 1)


class Link(ServiceClient):
    """A service that takes measurements and remembers which, or does not answer."""

    def __init__(self) -> None:
        self.got: list[set[str]] = []
        self.fails = False

    def ask(self, answer: Any, method: str, path: str, **content: Any) -> Any:
        if self.fails:
            raise httpx.ConnectError("no answer")
        lines = [orjson.loads(line) for line in content["content"].splitlines()]
        self.got.append({line["measurement"]["signature"] for line in lines if "measurement" in line})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path / 'own.db'}") as opened:
        opened.devices.save(DEVICE)
        yield opened


def measure(store: Store, name: str) -> None:
    """Store a measurement that is taken now."""
    taken = dataclasses.replace(measurement(name), measured_us=time.time_ns() // 1000)
    store.measurements.save([taken])


def desk_of(link: Link, store: Store, folder: Path) -> HttpDesk:
    return HttpDesk(link, store, Here(DEVICE.fingerprint, HERE.build), folder)


@pytest.mark.parametrize(  # an agent that is down does not see its clock being set by less than it is down for
    ("moved_s", "restarted"), [(-HOUR, False), (-2, False), (HOUR, False), (-HOUR, True), (HOUR, True)]
)
def test_an_agent_sends_what_it_measures_after_its_clock_was_set(
    store: Store, tmp_path: Path, clock: Clock, moved_s: float, restarted: bool
) -> None:
    link = Link()
    desk = desk_of(link, store, tmp_path / "agent")
    measure(store, "first")
    desk.push_measurements()
    clock.moved_s = moved_s
    measure(store, "second")
    if restarted:
        desk = desk_of(link, store, tmp_path / "agent")
    link.fails = True
    with pytest.raises(httpx.ConnectError):
        desk.push_measurements()
    link.fails = False
    desk.push_measurements()
    assert set.union(*link.got) == {"first", "second"}
    clock.moved_s += 1
    measure(store, "third")
    desk.push_measurements()
    assert "third" in link.got[-1]
    clock.moved_s += 2 * HOUR
    measure(store, "fourth")
    desk.push_measurements()
    before = len(link.got)
    measure(store, "fifth")
    desk.push_measurements()
    assert link.got[before:] in ([{"fourth", "fifth"}], [{"fifth"}])  # and not all again, for ever


def test_an_agent_without_room_sends_again_when_there_is_some(store: Store, tmp_path: Path) -> None:
    link = Link()
    with small_disk(tmp_path / "agent", 1 << 16) as disk:
        desk = desk_of(link, store, disk)
        measure(store, "first")
        filler = fill(disk)
        with pytest.raises(DeskError, match=r"pushed\.json cannot be written, No space left.*make room"):
            desk.push_measurements()
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "models", "outbox"]
        filler.unlink()
        desk.push_measurements()
        desk.push_measurements()
    assert link.got == [{"first"}] * 3


def test_what_an_agent_keeps_is_private(store: Store, tmp_path: Path) -> None:
    desk = desk_of(Link(), store, tmp_path / "agent")
    measure(store, "first")
    desk.push_measurements()
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "agent", *(tmp_path / "agent").iterdir())}
    assert found == {"agent": 0o700, "models": 0o700, "outbox": 0o700, "pushed.json": 0o600}
