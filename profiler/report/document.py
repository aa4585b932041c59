"""The report of a run: one document that the database keeps, the API and pages show and `edgewise profile` prints.

A `static` report lists the nodes of the model as imported, with their cost. A `trace` lists the steps as they ran, fused, with
their times. Unknown values are None. A report validates itself when it is read, because it may come from outside. Numbers carry
their units in their names; `docs/profiling.md` defines each.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from profiler.device.quiet import Quietness
from profiler.device.topology import Record
from profiler.errors import ProfileFormatError

SCHEMA_VERSION: Final = 2
Kind = Literal["static", "trace"]
Backend = Literal["native", "cuda", "numpy", "view", ""]
Doing = Literal["work", "wait"]

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Nanoseconds = Annotated[float, Field(ge=0, le=1e18)]
_Rate = Annotated[float, Field(ge=0)]
_Key = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]  # columns are made of it, and PostgreSQL refuses NUL
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]


class ModelFacts(Record):
    """The model of a report. inputs, outputs: name -> "float32[1,3,224,224]"."""

    name: str
    digest: _Digest
    inputs: dict[str, str]
    outputs: dict[str, str]


class Setup(Record):
    """How a trace was taken. device: fingerprint. plan_id: "default" where the run followed no plan."""

    device: _Digest
    device_name: str
    threads: Annotated[int, Field(ge=1, le=4096)]
    precision: _Key
    backend: _Key
    plan_id: _Key
    engine_build: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    runs: Annotated[int, Field(ge=1)]
    warmup: Annotated[int, Field(ge=0)]
    measured_us: _Count


class Totals(Record):
    """Totals of the model. Arithmetic, bytes, predicted_ns, roof_ns and wasted_ns are sums over the ops.

    unattributed_ns: the median wall time less the sum of the steps' medians.
    """

    macs: _Count
    flops: _Count
    other_flops: _Count
    executed_macs: _Count
    params: _Count
    params_note: str
    initializer_elements: _Count
    param_bytes: _Count
    read_bytes: _Count
    write_bytes: _Count
    peak_activation_bytes: _Count
    arena_bytes: _Count
    coverage_percent: float
    wall_p50_ns: _Nanoseconds | None = None
    wall_p90_ns: _Nanoseconds | None = None
    wall_min_ns: _Nanoseconds | None = None
    first_ns: _Nanoseconds | None = None
    unattributed_ns: Annotated[float, Field(ge=-1e18, le=1e18)] | None = None
    predicted_ns: _Nanoseconds | None = None
    roof_ns: _Nanoseconds | None = None
    wasted_ns: _Nanoseconds | None = None


class Op(Record):
    """A node of the model, or a step as it ran.

    origins: the ONNX nodes it stands for. inputs, outputs: names of values; output: spec of the first output. strategy: that it
    ran by, "" where nothing ran. share_percent: of the time; of the FLOPs in a static report. live_bytes: the most activation
    memory held at once while it runs. moved_bytes, intensity, achieved_flops_per_s: as executed. roof_percent: roof_ns ÷ p50_ns.
    contradiction: why it may be faster than its roof, "" where it is not. reason: why it is not counted, or what was assumed.
    """

    index: Annotated[int, Field(ge=0, lt=1 << 31)]
    name: str
    op: str
    origins: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output: str
    backend: Backend = ""
    strategy: Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")] = ""
    macs: _Count
    executed_macs: _Count
    flops: _Count
    read_bytes: _Count
    write_bytes: _Count
    moved_bytes: _Count
    param_bytes: _Count
    live_bytes: _Count
    intensity: _Rate
    p50_ns: _Nanoseconds | None = None
    p90_ns: _Nanoseconds | None = None
    min_ns: _Nanoseconds | None = None
    first_ns: _Nanoseconds | None = None
    share_percent: _Rate
    predicted_ns: _Nanoseconds | None = None
    roof_ns: _Nanoseconds | None = None
    roof_percent: _Rate | None = None
    wasted_ns: _Nanoseconds | None = None
    bound: Literal["compute", "memory", ""] = ""
    precision: _Key = ""
    level: _Key = ""
    achieved_flops_per_s: _Rate | None = None
    contradiction: str = ""
    counted: bool
    reason: str = ""


class Value(Record):
    """A value in activation memory, held while the ops `first` to `last` run: at the moment of each op at which most is held.

    offset_bytes: in the arena; None for the model's inputs and outputs, which lie outside.
    """

    name: str
    nbytes: _Count
    first: _Count
    last: _Count
    offset_bytes: _Count | None


class Timeline(Record):
    """The median run.

    threads: for each thread its slices (index of the op, start_ns since the run began, duration_ns, activity).
    """

    wall_ns: _Nanoseconds
    threads: tuple[tuple[tuple[int, int, int, Doing], ...], ...]


class PeakRate(Record):
    """The peak arithmetic rate of the device in a precision."""

    precision: _Key
    flops_per_s: _Rate


class LevelRate(Record):
    """The highest bandwidth of a level of memory. capacity_bytes: of all its caches in use; None for DRAM."""

    level: _Key
    bytes_per_s: _Rate
    capacity_bytes: _Count | None


class Roof(Record):
    """The roofline of a device at that many threads. bandwidths: the innermost level first."""

    device: _Digest
    threads: Annotated[int, Field(ge=1, le=4096)]
    peaks: tuple[PeakRate, ...]
    bandwidths: tuple[LevelRate, ...]


class Missing(Record):
    """A node that runs and whose cost is not known."""

    node: str
    op: str
    reason: str


class Problem(Record):
    """An op faster than its roof, and which of counting, timing or peak is probably wrong."""

    name: str
    op: str
    roof_percent: _Rate
    reason: str


class Check(Record):
    """The self-check of a report: whether its numbers agree with one another."""

    ok: bool
    problems: tuple[Problem, ...] = ()


class Report(Record):
    """The document of a run. Only traces have setup, timeline and roof; the roof is None where the device was not measured.

    quietness: whether other work used the machine while it was timed; None where that was not watched.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    kind: Kind
    model: ModelFacts
    setup: Setup | None = None
    totals: Totals
    ops: Annotated[tuple[Op, ...], Field(max_length=1_000_000)]
    values: tuple[Value, ...]
    timeline: Timeline | None = None
    roof: Roof | None = None
    uncounted: tuple[Missing, ...] = ()
    check: Check
    quietness: Quietness | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "trace") != (self.setup is not None):
            raise ValueError(f"a {self.kind} {'has a' if self.setup else 'lacks its'} setup")
        return self

    def to_json(self) -> str:
        """Return the report as JSON; `from_json` reads it back equal."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        """Read a report from anywhere. Raises ProfileFormatError naming the first field that breaks the schema."""
        try:
            return Report.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ProfileFormatError(f"report: {first['msg']} ({where})") from None

    def alive(self, index: int) -> tuple[Value, ...]:
        """Return the values held while an op runs, the largest first."""
        held = (value for value in self.values if value.first <= index <= value.last)
        return tuple(sorted(held, key=lambda value: -value.nbytes))
