"""Kinds of jobs: the request that each takes, how it is run and the outcome it gives. Knows neither service nor network.

A worker takes a job (`Store.jobs`), runs it with `execute`, and passes the outcome to `deliver`: on its own database, or over the
network on that of the service. A kind is one row of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graph.ir import Model
from kernels.record import record
from profiler.counting.counts import profile
from profiler.device.profile import DeviceProfile
from profiler.device.quiet import require_quiet
from profiler.report.document import Report
from profiler.report.makers import static_report
from scheduler.build import current_build
from scheduler.errors import RecordFormatError, StoppedError
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import Plan
from scheduler.profile_run import measure_model
from scheduler.store import Here, Job, Store
from scheduler.strategy import WantedPrecision
from scheduler.tuning.tuner import TuneProgress, tune

_Size = Annotated[int, Field(ge=0, le=2**40)]
_Name = Annotated[str, Field(max_length=1024)]
_Shape = Annotated[tuple[_Size, ...], Field(max_length=64)]
_Threads = Annotated[int, Field(ge=1, le=1024)]


PROBE_S: Final = 2.0  # seconds to measure a new device for, before a trace


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkRequest(_Data):
    """A model at certain input shapes. shapes: input -> shape. dims: dynamic dimension -> size."""

    shapes: Annotated[dict[_Name, _Shape], Field(max_length=64)] = {}
    dims: Annotated[dict[_Name, _Size], Field(max_length=64)] = {}


class TraceRequest(WorkRequest):
    """Time that many runs on random inputs. plan_id: a stored plan to run; None = every op's first candidate."""

    runs: Annotated[int, Field(ge=1, le=10_000)] = 50
    threads: _Threads | None = None
    plan_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None


class TuneRequest(WorkRequest):
    """Measure candidates for at most `budget_s` seconds, then plan."""

    budget_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 60.0
    threads: _Threads | None = None
    max_error: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    backend: Literal["auto", "native", "numpy"] = "auto"
    precision: WantedPrecision = "fp32"


class ProbeRequest(_Data):
    """Measure the device for about that many seconds."""

    seconds: Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)] = 8.0


class FoundRun(_Data):
    """A profile run to store."""

    engine_build: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    report: Report


class JobOutcome(_Data):
    """The outcome of a job. summary: goes into its result. device, plan: JSON documents. `deliver` stores all but the summary."""

    summary: dict[str, Any] = {}
    device: str | None = None
    plan: str | None = None
    run: FoundRun | None = None


@record
class Task:
    """A job being run.

    db: the URL of `store`. threads: that it may use where its request names none; None = all cores. report: takes its progress.
    stop: asked now and then; True ends the job early.
    """

    request: Any
    model: Model | None
    store: Store
    db: str | None
    threads: int | None
    report: Callable[[Mapping[str, Any]], None]
    stop: Callable[[], bool]

    def require_model(self) -> Model:
        """Return the model. Raises RecordFormatError where the job names none."""
        if self.model is None:
            raise RecordFormatError("job: it names no model, this kind needs one")
        return self.model


@record
class Kind:
    """A kind of job. request: the form of its request. of_model: whether it needs a model. run: how it is run."""

    request: type[BaseModel]
    of_model: bool
    run: Callable[[Task], JobOutcome]


def check_request(kinds: Mapping[str, Kind], kind: str, request: object) -> str:
    """Check a request against its kind. Returns it as JSON with every default filled in. Raises RecordFormatError."""
    return _parse(kinds, kind, to_json(request)).model_dump_json()


def to_json(value: object) -> bytes:
    """Return a caller's value as JSON. Raises RecordFormatError for values JSON cannot hold, such as integers beyond 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise RecordFormatError(f"job: {error}, need a value that JSON can hold") from None


def execute(
    kinds: Mapping[str, Kind],
    job: Job,
    model: Model | None,
    store: Store,
    db: str | None,
    threads: int | None,
    report: Callable[[Mapping[str, Any]], None],
    stop: Callable[[], bool],
) -> JobOutcome:
    """Run a job on this machine. Raises RecordFormatError for an unknown kind or request, and what running it raises."""
    request = _parse(kinds, job.kind, job.request.encode())
    return kinds[job.kind].run(Task(request, model, store, db, threads, report, stop))


def deliver(store: Store, job: Job, outcome: JobOutcome) -> dict[str, Any]:
    """Store the outcome of a job. It is checked, because it may come over the network.

    Returns: the job's result: the summary, and the keys under which device, plan and run were stored.
    Raises:  RecordFormatError for an outcome of another model or device; PlanFormatError, ProfileFormatError.
    """
    result = dict(outcome.summary)
    if outcome.device is not None:
        device = DeviceProfile.from_json(outcome.device)
        _require_same("device", device.fingerprint, job.device_fingerprint)
        store.devices.save(device)
        result["device"] = device.fingerprint
    if outcome.plan is not None:
        plan = Plan.from_json(outcome.plan)
        _require_same("plan's model", plan.model_digest, job.model_digest)
        _require_same("plan's device", plan.device_fingerprint, job.device_fingerprint)
        store.plans.save(plan)
        result["plan_id"] = plan.id
    if (run := outcome.run) is not None:
        _require_same("run's model", run.report.model.digest, job.model_digest)
        if run.report.setup is not None:
            _require_same("run's device", run.report.setup.device, job.device_fingerprint)
        result["profile_id"] = store.profiles.save(run.report, run.engine_build)
    return result


def _parse(kinds: Mapping[str, Kind], kind: str, request: bytes) -> BaseModel:
    if kind not in kinds:
        raise RecordFormatError(f"job: kind is {kind[:40]!r}, need one of {', '.join(kinds)}")
    try:
        return kinds[kind].request.model_validate_json(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "request"
        fields = f", need only {', '.join(kinds[kind].request.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise RecordFormatError(f"job: {first['msg']}{fields} ({kind}, {where})") from None


def _require_same(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise RecordFormatError(f"job: {what} is {found[:64]}, need {wanted}")


def _profile(task: Task) -> JobOutcome:
    counted = profile(task.require_model(), task.request.shapes, task.request.dims)
    run = FoundRun(engine_build=current_build().id, report=static_report(counted))
    return JobOutcome(summary={"macs": counted.macs, "flops": counted.flops}, run=run)


def _trace(task: Task) -> JobOutcome:
    model, asked = task.require_model(), task.request

    def say(phase: str) -> None:
        task.report({"phase": phase, "runs": asked.runs})

    here = Here(local_fingerprint(), current_build())
    plan = None if asked.plan_id is None else task.store.plans.get(asked.plan_id, here).plan
    device = local_device(task.store, PROBE_S)
    try:
        report = measure_model(
            model,
            device,
            task.store,
            asked.shapes,
            asked.dims,
            runs=asked.runs,
            threads=asked.threads or task.threads,
            plan=plan,
            say=say,
            stop=task.stop,
        )
    except StoppedError:
        return JobOutcome()
    require_quiet("trace", report.quietness)
    totals = report.totals
    summary = {
        "wall_p50_ns": totals.wall_p50_ns,
        "runs": asked.runs,
        "threads": report.setup.threads if report.setup else 0,
        "problems": len(report.check.problems),
    }
    return JobOutcome(summary=summary, run=FoundRun(engine_build=here.build.id, report=report))


def _probe(task: Task) -> JobOutcome:
    def progress(done: int, total: int, what: str) -> None:
        task.report({"phase": what, "done": done, "total": total})

    measured = local_device(task.store, task.request.seconds, again=True, progress=progress)
    return JobOutcome(summary={"name": measured.name}, device=measured.to_json())


def _tune(task: Task) -> JobOutcome:
    model, asked = task.require_model(), task.request

    def progress(at: TuneProgress) -> None:
        names = ("measured", "planned", "spent_s", "budget_s", "best_ns", "now")
        task.report({name: getattr(at, name) for name in names})

    task.store.models.save(model.digest, model.source, model.nbytes)
    try:
        tuned = tune(
            model,
            asked.budget_s,
            asked.shapes,
            asked.dims,
            threads=asked.threads or task.threads,
            max_error=asked.max_error,
            backend=asked.backend,
            precision=asked.precision,
            db=task.db,
            progress=progress,
            stop=task.stop,
        )
    except StoppedError:
        return JobOutcome()
    return JobOutcome(summary={"predicted_ns": tuned.predicted_ns, "measured_ns": tuned.measured_ns}, plan=tuned.to_json())


KINDS: Final[Mapping[str, Kind]] = {
    "tune": Kind(TuneRequest, True, _tune),
    "trace": Kind(TraceRequest, True, _trace),
    "profile": Kind(WorkRequest, True, _profile),
    "probe": Kind(ProbeRequest, False, _probe),
}
