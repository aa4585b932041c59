"""A measuring agent: it claims the jobs that a remote service has for this machine, runs them here, and sends back the results.

Every measurement first goes into the agent's own database, and every result into a folder, where it stays until the service has
acknowledged it. A lost connection, a restart of either side or a killed agent therefore costs time and no measurement. Sending
something twice changes nothing: measurements have keys, the id of a plan is a hash of it, and a job ends once.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import orjson
import structlog

from app.agent.client import RefusedError, ServiceClient
from app.jobs.execution import DeskError, Ended, JobContext, JobWorker
from app.v1.devices import DeviceOut
from app.v1.exchange import ImportedOut
from app.v1.jobs import BeatOut, ClaimOut, JobOut
from graph.formats.registry import read
from graph.ir import Model
from kernels.errors import EdgewiseError
from kernels.private import make_private_folder, private_opener
from scheduler.build import current_build
from scheduler.errors import NotFoundError
from scheduler.jobs import KINDS, JobOutcome, Kind
from scheduler.local import local_device
from scheduler.store import Claim, Here, Job, Store
from scheduler.store.records import now_us
from scheduler.store.transfer import export_measurements

log = structlog.get_logger("edgewise.agent")

WAIT_S: Final = 10.0  # how long the service may hold a claim until there is a job
REST_S: Final = 0.5  # after each job, so that two agents that cannot run one do not pass it back and forth without a pause
LINES: Final = 1000  # measurements in one request, about 700 bytes each
KEPT_MODELS: Final = 16
CLOCK_JITTER_US: Final = 1000  # between two reads of clocks
KEPT_SUFFIX: Final = ".model"  # of any format: the file says which


class HttpDesk:
    """The agent's side of the job protocol over HTTP. folder: keeps models and unacknowledged results."""

    def __init__(self, link: ServiceClient, store: Store, here: Here, folder: Path) -> None:
        self._link, self._store, self._here = link, store, here
        self.device = here.device_fingerprint
        self._models, self._outbox = folder / "models", folder / "outbox"
        self._pushed = folder / "pushed.json"
        self._clock_us = _clock_us()
        for made in (self._models, self._outbox):
            make_private_folder(made)

    def model(self, digest: str) -> Model:
        """Return the model with this SHA-256, downloaded unless it is here. Raises DeskError, NotFoundError, RefusedError."""
        path = self._models / f"{digest}{KEPT_SUFFIX}"
        if not path.is_file():
            self._fetch(digest, path)
        os.utime(path)
        for old in sorted(self._models.glob(f"*{KEPT_SUFFIX}"), key=lambda found: -found.stat().st_mtime)[KEPT_MODELS:]:
            old.unlink(missing_ok=True)
        return read(path)

    def _fetch(self, digest: str, path: Path) -> None:
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            found = self._link.insist(lambda: self._link.download(f"/v1/models/{digest}/file", partial))
            if found != digest:
                raise RefusedError(f"agent: model {digest} arrived with SHA-256 {found}, it was changed or truncated")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def beat(self, claim: Claim, progress: str) -> bool:
        """Renew the lease, then send the measurements taken since the last beat. Returns whether the job was cancelled.

        Raises: DeskError, LeaseLostError.
        """
        said = {"lease": claim.lease, "progress": orjson.loads(progress)}
        cancel = self._link.ask(BeatOut, "POST", f"/v1/jobs/{claim.job.id}/beat", json=said).cancel
        self.push_measurements()
        return cancel

    def end(self, claim: Claim, state: Ended, outcome: JobOutcome, error: str) -> None:
        """Send every measurement, then the result, which is kept until it is acknowledged. Raises DeskError, LeaseLostError."""
        said = {"lease": claim.lease, "state": state, "outcome": outcome.model_dump(mode="json"), "error": error[:16_384]}
        kept = self._outbox / f"{claim.job.id}-{claim.lease}.json"
        self._link.insist(lambda: _write(kept, orjson.dumps({"job": claim.job.id, "said": said})))
        self._link.insist(self.push_measurements)
        self._send(kept)

    def send_kept(self) -> None:
        """Send the results that this agent could not send before it was restarted. Raises DeskError."""
        for kept in sorted(self._outbox.glob("*.json")):
            try:
                self._send(kept)
            except EdgewiseError as error:
                if isinstance(error, DeskError):
                    raise
                log.warning("result no longer wanted", file=kept.name, reason=str(error))

    def _send(self, kept: Path) -> None:
        item = orjson.loads(kept.read_bytes())
        try:
            self._link.insist(lambda: self._link.ask(JobOut, "POST", f"/v1/jobs/{item['job']}/end", json=item["said"]))
        except DeskError:
            raise
        except EdgewiseError:  # a refusal acknowledges it as well
            kept.unlink()
            raise
        kept.unlink()

    def forget(self) -> None:
        """Send all measurements again: the service has none of this device."""
        self._pushed.unlink(missing_ok=True)

    def push_measurements(self) -> None:
        """Send the measurements of this device that the service has not acknowledged. Raises DeskError, RefusedError."""
        clock_us = _clock_us()
        since_us = latest_us = self._since_us(clock_us)
        lines = export_measurements(self._store, self._here, self.device, since_us)
        header = next(lines)
        for batch in _batches(line for line in lines if line.startswith('{"measurement"')):
            self._link.ask(ImportedOut, "POST", "/v1/measurements", content="\n".join([header, *batch]).encode())
            latest_us = max(latest_us, *(orjson.loads(line)["measurement"]["measured_us"] for line in batch))
        if latest_us > since_us:
            _write(self._pushed, orjson.dumps({"measured_us": min(latest_us, now_us())}))
        self._clock_us = clock_us

    def _since_us(self, clock_us: int) -> int:
        """Return the time of the newest measurement that the service has acknowledged, or 0: send all of them.

        It is 0 after the clock was set back, since measurements taken after that may bear earlier times than those sent before.
        """
        sent_us: int = orjson.loads(self._pushed.read_bytes())["measured_us"] if self._pushed.is_file() else 0
        set_back = clock_us < self._clock_us - CLOCK_JITTER_US or sent_us > now_us()
        return 0 if set_back else sent_us


class Agent:
    """Works for one service until it is closed.

    Args: server: address of the service. key: API key with scope admin. db: URL of the database for measurements.
          folder: for models and unsent results. probe_s: seconds to measure a machine that is new. threads: that a job may use
          which names none; None = all cores. kinds: of jobs it can run.
    """

    def __init__(
        self,
        server: str,
        key: str | None,
        db: str | None,
        folder: Path,
        *,
        probe_s: float,
        threads: int | None = None,
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self._closing = threading.Event()
        self._link = ServiceClient(server, key, self._closing)
        self._db, self._folder, self._kinds = db, folder, kinds
        self._probe_s, self._threads = probe_s, threads
        self._owner = f"agent {platform.node()}:{os.getpid()}"
        self._worker: JobWorker | None = None

    def close(self) -> None:
        """End as soon as the running job can stop; that job goes back to the queue."""
        self._closing.set()
        if (worker := self._worker) is not None:
            worker.close()

    def run(self, *, once: bool) -> int:
        """Run jobs until the agent is closed, or with `once` until none is waiting. Returns how many it ran.

        Raises: RefusedError, StoreError.
        """
        worked = 0
        with Store(self._db) as store:
            try:
                while not self._closing.is_set():
                    desk = self._register(store)
                    desk.send_kept()
                    self._link.insist(desk.push_measurements)
                    try:
                        while (claimed := self._next(desk.device, once=once)) is not None:
                            worked += 1
                            context = JobContext(self._kinds, store, self._db, self._probe_s, self._threads)
                            self._work(context, desk, *claimed)
                    except NotFoundError as error:  # the service has a new database
                        log.warning("registering again", reason=str(error))
                        continue
                    break
            except DeskError as error:
                if not self._closing.is_set():
                    raise
                log.warning("ended with unsent results or measurements, they are kept", reason=str(error))
            finally:
                self._link.close()
        return worked

    def _next(self, device: str, *, once: bool) -> tuple[Claim, float] | None:
        """Wait for the next job. Returns None when the agent is to end. Raises NotFoundError."""
        while not self._closing.is_set():
            claimed = self._claim(device, 0.0 if once else WAIT_S)
            if claimed is not None or once:
                return claimed
        return None

    def _register(self, store: Store) -> HttpDesk:
        """Send the profile of this machine to the service; a machine that is new is measured first."""
        profile = local_device(store, self._probe_s)
        path, body = f"/v1/devices/{profile.fingerprint}", profile.to_json().encode()
        known = self._link.insist(lambda: self._link.ask(DeviceOut, "PUT", path, content=body))
        desk = HttpDesk(self._link, store, Here(profile.fingerprint, current_build()), self._folder)
        if known.created_us == known.updated_us:  # the service did not know it
            desk.forget()
        log.info("registered", device=profile.fingerprint, name=profile.name)
        return desk

    def _claim(self, device: str, wait_s: float) -> tuple[Claim, float] | None:
        """Claim a job. Returns it with the length of its lease in seconds, or None where none came within `wait_s` seconds.

        Raises: NotFoundError when the service does not know the device.
        """
        asked = {"device": device, "owner": self._owner, "wait_s": wait_s}
        answer = self._link.insist(lambda: self._link.ask(ClaimOut, "POST", "/v1/jobs/claim", json=asked, wait_s=wait_s))
        if answer.job is None or answer.lease is None:
            return None
        return Claim(_job(answer.job), answer.lease), answer.lease_s

    def _work(self, context: JobContext, desk: HttpDesk, claim: Claim, lease_s: float) -> None:
        worker = self._worker = JobWorker(context, desk, lease_s)
        if self._closing.is_set():
            worker.close()
        worker.run(claim)
        self._worker = None
        self._closing.wait(REST_S)


def _clock_us() -> int:
    """Return what the clock is ahead of the monotonic one, in microseconds: it changes only when the clock is set."""
    return now_us() - time.monotonic_ns() // 1000


def _job(out: JobOut) -> Job:
    fields = out.model_dump()
    fields["device_fingerprint"] = fields.pop("device")
    for name in ("request", "progress", "result"):
        fields[name] = orjson.dumps(fields[name]).decode()
    return Job(**fields)


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == LINES:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(path: Path, raw: bytes) -> None:
    """Replace a file atomically: a crash leaves the old one or the new one. Raises DeskError where the disk does not take it."""
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        with open(partial, "wb", opener=private_opener) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DeskError(f"agent: {path} cannot be written, {error.strerror} (make room, or choose another --folder)") from None
