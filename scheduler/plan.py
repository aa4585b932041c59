"""Plans: for one model, device and objective the strategy of every step, its cost, the candidates that it beat, and why.

A plan is data: versioned JSON that is stored and compared, and the executor runs exactly it. Plans may come from outside, so
reading one checks every value against explicit limits. A plan holds no time of its making: equal inputs give equal plans.

In plans and their texts, *measured* is a time taken on that device, *predicted* one from a cost model fitted to measurements, and
*estimated* one from the roofline of the device alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, WithJsonSchema

from graph.choice import Choice
from kernels.errors import UnsupportedError
from kernels.precision import Precision
from scheduler.build import Build
from scheduler.errors import PlanFormatError, StrategyFormatError
from scheduler.strategy import MAX_THREADS, Strategy, WantedBackend, WantedPrecision

SCHEMA_VERSION: Final = 1
MAX_PLAN_BYTES: Final = 64 << 20
MAX_STEPS: Final = 100_000
MAX_CANDIDATES: Final = 4096
MAX_INPUTS: Final = 1024
EXECUTOR: Final = "executor"  # the backend of steps without a kernel: views, control flow, shapes known only at run time

Objective = Literal["latency", "throughput", "memory"]
BoundBy = Literal["compute", "memory", "dispatch", "unknown"]
Verdict = Literal["chosen", "tie", "slower", "unmeasured", "over_limit", "refused"]
TIE: Final = 1.01  # times within one percent of each other are a tie

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
_Name = Annotated[str, Field(max_length=1024)]
_Text = Annotated[str, Field(max_length=16_384)]
_Count = Annotated[int, Field(ge=0, le=1 << 62)]
_Nanoseconds = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
_Threads = Annotated[int, Field(ge=1, le=MAX_THREADS)]


def _to_strategy(value: object) -> Strategy:
    """Read a strategy for pydantic, which adds the place of the value to a ValueError, and to no other error."""
    if isinstance(value, Strategy):
        return value
    if not isinstance(value, str):
        raise ValueError(f"strategy: got {type(value).__name__}, need its text form")
    try:
        return Strategy.parse(value)
    except StrategyFormatError as error:
        raise ValueError(str(error)) from None


StrategyText = Annotated[
    Strategy,
    PlainValidator(_to_strategy),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["numpy/im2col/fp32/t2"]}),
]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Constraints(_Data):
    """Limits that a plan must keep; None is no limit. max_error: of the output, relative to the float32 reference."""

    max_latency_ms: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    max_memory_bytes: _Count | None = None
    max_error: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_threads: _Threads | None = None
    backend: WantedBackend = "auto"
    precision: WantedPrecision = "fp32"


class InputShape(_Data):
    """A graph input as the plan binds it."""

    name: _Name
    dtype: Annotated[str, Field(max_length=16)]
    shape: Annotated[tuple[_Count, ...], Field(max_length=64)]


class Candidate(_Data):
    """One way a step could run, at the plan's thread count.

    predicted_ns: by the cost model, between low_ns and high_ns. measured_ns: the fastest run of the stored measurement of this
    device and build; it takes precedence. All are None for a refused candidate. packed_bytes: of constants as its kernel reads
    them, beside those of the model. reason: why it was refused or lost. verdict: unmeasured means that it is only predicted,
    while the chosen one was measured.
    """

    strategy: StrategyText
    predicted_ns: _Nanoseconds | None = None
    low_ns: _Nanoseconds | None = None
    high_ns: _Nanoseconds | None = None
    measured_ns: _Nanoseconds | None = None
    workspace_bytes: _Count = 0
    packed_bytes: _Count = 0
    verdict: Verdict
    reason: _Text = ""

    @property
    def expected_ns(self) -> float | None:
        """The time that candidates are compared by: measured where there is a measurement, else predicted."""
        return self.predicted_ns if self.measured_ns is None else self.measured_ns


class PlanStep(_Data):
    """One node of the optimised graph, in execution order.

    strategy: its backend, algorithm and parameters are passed to the executor. signature, signature_key: name the work, and find
    its measurements. kernel_source: hash of the source of its op. executed_macs: that the algorithm multiplies; macs: of the op's
    definition. moved_bytes: read and written once, to and from memory level `level`. predicted_ns: `expected_ns` of the chosen
    candidate; measured: whether that was measured.
    """

    node: _Name
    op: _Name
    signature: _Text
    signature_key: _Hex
    kernel_source: Annotated[str, Field(pattern=r"^([0-9a-f]{8,64})?$")]
    strategy: StrategyText
    macs: _Count
    executed_macs: _Count
    other_flops: _Count
    moved_bytes: _Count
    level: Annotated[str, Field(max_length=16)]
    predicted_ns: _Nanoseconds
    low_ns: _Nanoseconds
    high_ns: _Nanoseconds
    measured: bool
    bound_by: BoundBy
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MAX_CANDIDATES)]
    why: _Text


def all_measured(steps: Iterable[PlanStep]) -> bool:
    """Return whether every step was measured that runs a kernel."""
    return all(step.measured or step.strategy.backend == EXECUTOR for step in steps)


class ThreadOption(_Data):
    """A thread count that the planner considered for the whole plan. throughput_per_s: of `replicas` executors side by side."""

    threads: _Threads
    replicas: _Threads
    predicted_ns: _Nanoseconds
    memory_bytes: _Count
    throughput_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    verdict: Verdict
    reason: _Text = ""


class State(_Data):
    """Whether the plan may be run as it is.

    current: made for this device, engine build and kernels. predicted: made for a device that is not this machine, from its
    profile alone. stale: device, build or a kernel changed since; `reason` says which. drifted: current, but its latency while
    serving is not the one it states; it may be run, and should be tuned again.
    """

    status: Literal["current", "predicted", "stale", "drifted"] = "current"
    reason: _Text = ""


class Plan(_Data):
    """How to run one model on one device.

    model_digest, device_fingerprint, engine_build: the model, device and engine that it holds for. threads: of every step.
    replicas: executors to run side by side, more than one only for throughput. predicted_ns: of one inference, the sum of the
    steps' expected times, between low_ns and high_ns. measured_ns: the median of whole runs. memory_bytes: of one replica:
    arena + parameters, as the model has them and as kernels read them + graph inputs and outputs. precision: of the steps with
    products. error_estimate: the sum of the steps' declared tolerances, relative to the largest output, and what less exact
    products add to it. measured_error: the largest difference from outputs in fp32, relative to the largest number of the output,
    on samples; None where none were run.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model_digest: _Hex
    model_name: _Name
    device_fingerprint: _Hex
    device_name: _Name
    engine_build: Annotated[str, Field(min_length=1, max_length=200)]
    objective: Objective
    constraints: Constraints
    inputs: Annotated[tuple[InputShape, ...], Field(max_length=MAX_INPUTS)]
    threads: _Threads
    replicas: _Threads = 1
    precision: Precision | Literal["mixed"]
    steps: Annotated[tuple[PlanStep, ...], Field(max_length=MAX_STEPS)]
    predicted_ns: _Nanoseconds
    low_ns: _Nanoseconds
    high_ns: _Nanoseconds
    measured_ns: _Nanoseconds | None = None
    memory_bytes: _Count
    arena_bytes: _Count
    param_bytes: _Count
    error_estimate: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    measured_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    thread_options: Annotated[tuple[ThreadOption, ...], Field(max_length=MAX_THREADS)]
    ties: Annotated[tuple[_Text, ...], Field(max_length=MAX_STEPS)] = ()
    why: _Text
    state: State = State()

    @property
    def choices(self) -> dict[str, Choice]:
        """Node name -> how the executor is to compute it; without steps that it runs by itself (views, control flow)."""
        return {step.node: step.strategy.choice for step in self.steps if step.strategy.backend != EXECUTOR}

    @property
    def request(self) -> str:
        """Key of the request that the plan answers (`request_key`): a newer plan of the same request replaces it."""
        return request_key(self.objective, self.constraints, self.inputs)

    @property
    def id(self) -> str:
        """SHA-256 in hex of the whole plan but for its state and what was measured of the whole of it."""
        return hashlib.sha256(self.model_dump_json(exclude={"state", "measured_ns", "measured_error"}).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as JSON; `from_json` reads it back equal."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str | bytes) -> Plan:
        """Read a plan from anywhere. Raises PlanFormatError naming the first value that breaks a rule, and where."""
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_PLAN_BYTES:
            raise PlanFormatError(f"plan: {len(raw)} bytes, need at most {MAX_PLAN_BYTES}")
        try:
            found = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise PlanFormatError(f"plan: not JSON, {error}") from None
        version = found.get("schema_version") if isinstance(found, dict) else None
        if version != SCHEMA_VERSION:
            raise PlanFormatError(f"plan: schema_version is {version!r}, this build reads {SCHEMA_VERSION}")
        try:
            return Plan.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise PlanFormatError(f"plan: {first['msg']} ({'.'.join(map(str, first['loc'])) or 'the document'})") from None

    def judged(self, device_fingerprint: str, build: Build) -> Plan:
        """Return this plan with the state that it has on that device and build: current, predicted or stale, with the reason."""
        reason = self.staleness(device_fingerprint, build)
        if reason:
            state = State(status="stale", reason=reason)
        elif self.state.status == "predicted":
            state = self.state
        else:
            state = State()
        return self.model_copy(update={"state": state})

    def staleness(self, device_fingerprint: str, build: Build) -> str:
        """Return why this plan must not be run on that device by that build; "" when it may be."""
        if self.device_fingerprint != device_fingerprint:
            return f"made for device {self.device_fingerprint} ({self.device_name}), this is {device_fingerprint}"
        return since_built(self.engine_build, {step.op: step.kernel_source for step in self.steps}, build)


class InfeasibleError(UnsupportedError):
    """No plan meets the constraints.

    binds: the constraint that cannot be met, with its values. closest: the plan that misses it by least.
    """

    def __init__(self, message: str, binds: str, closest: Plan) -> None:
        super().__init__(message)
        self.binds = binds
        self.closest = closest


def request_key(objective: Objective, constraints: Constraints, inputs: tuple[InputShape, ...]) -> str:
    """Return the SHA-256 of a request besides its model and device: objective, constraints, inputs."""
    asked = [objective, constraints.model_dump_json(), *(item.model_dump_json() for item in inputs)]
    return hashlib.sha256(orjson.dumps(asked)).hexdigest()


def since_built(engine_build: str, kernels: Mapping[str, str], build: Build) -> str:
    """Return what changed since a plan was made; "" where nothing did.

    Args: engine_build, kernels: of the plan, kernels as op -> hash of its source. build: the current one.
    """
    if engine_build != build.id:
        return f"made by engine build {engine_build}, this is {build.id}"
    changed = sorted(op for op, source in kernels.items() if build.kernel_source(op) != source)
    return f"the source of {', '.join(changed)} changed since" if changed else ""
