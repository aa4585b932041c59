"""Export and import of measurements as JSON lines, with the devices they were taken on.

The first line names the format; devices follow, each before its measurements. An import checks every value against limits. A
stored measurement is replaced only by one with more samples, or a newer one with as many (`Measurements.save`); a stored device
keeps its profile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kernels.record import record
from profiler.device.profile import DeviceProfile
from profiler.errors import ProfileFormatError
from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.plan import StrategyText
from scheduler.store import Store
from scheduler.store.records import MAX_PAGE, Here, Measurement
from scheduler.workload import MAX_CHARACTERS, Workload

MAX_LINE_BYTES: Final = 4 << 20  # a device profile of a large machine is the longest
_BATCH = 500

_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Nanoseconds = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]


@record
class Imported:
    """The number of devices and measurements that an import read, whether or not they replaced stored ones."""

    devices: int
    measurements: int


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    edgewise: Literal["measurements"]
    version: Literal[1]


class _Line(BaseModel):
    """A measurement in its exported form; the field names are those of `Measurement`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    device_fingerprint: _Key
    engine_build: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    kernel_source: Annotated[str, Field(pattern=r"^([0-9a-f]{8,64})?$")]
    op: _Name
    signature: Annotated[str, Field(max_length=16_384, pattern=r"^[^\x00]*$")]
    signature_key: _Key
    strategy: StrategyText
    executed_macs: _Count
    other_flops: _Count
    moved_bytes: _Count
    samples: Annotated[int, Field(ge=1, lt=1 << 63)]
    min_ns: _Nanoseconds
    p50_ns: _Nanoseconds
    p90_ns: _Nanoseconds
    mean_ns: _Nanoseconds
    std_ns: _Nanoseconds
    measured_us: _Count
    load: Annotated[str, Field(max_length=MAX_CHARACTERS)] = ""


def export_measurements(store: Store, here: Here, device: str | None = None, since_us: int = 0) -> Iterator[str]:
    """Yield measurements as lines without line ends: all, or those of a device, or taken since then. Raises NotFoundError."""
    yield orjson.dumps({"edgewise": "measurements", "version": 1}).decode()
    written: set[str] = set()
    cursor: str | None = None
    while True:
        page = store.measurements.page(here, device=device, limit=MAX_PAGE, cursor=cursor, since_us=since_us)
        for found in page.items:
            fingerprint = found.measurement.device_fingerprint
            if fingerprint not in written:
                written.add(fingerprint)
                yield f'{{"device":{store.devices.get(fingerprint).profile}}}'
            fields = asdict(found.measurement) | {"strategy": str(found.measurement.strategy)}
            yield orjson.dumps({"measurement": fields}).decode()
        if page.next is None:
            return
        cursor = page.next


def import_measurements(store: Store, lines: Iterable[str]) -> Imported:
    """Merge exported lines into a database. Lines before a faulty one are kept; importing again changes nothing.

    Raises: RecordFormatError naming the line, NotFoundError for a measurement whose device is neither stored nor in the lines.
    """
    devices = measurements = 0
    batch: list[Measurement] = []
    for number, entry in _records(lines):
        if isinstance(entry, DeviceProfile):
            devices += 1
            _keep_device(store, entry)
            continue
        if hashlib.sha256(entry.signature.encode()).hexdigest() != entry.signature_key:
            raise RecordFormatError(
                f"import: signature_key is {entry.signature_key}, need the SHA-256 of signature (line {number})"
            )
        if entry.load:
            _check_load(entry.load, number)
        batch.append(entry)
        measurements += 1
        if len(batch) == _BATCH:
            store.measurements.save(batch)
            batch = []
    store.measurements.save(batch)
    return Imported(devices, measurements)


def _records(lines: Iterable[str]) -> Iterator[tuple[int, DeviceProfile | Measurement]]:
    header = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _parse(line, number)
        try:
            if not header:
                _Header.model_validate(found)
                header = True
            elif set(found) == {"device"}:
                yield number, DeviceProfile.from_json(orjson.dumps(found["device"]))
            elif set(found) == {"measurement"}:
                checked = _Line.model_validate(found["measurement"])
                yield number, Measurement(**{name: getattr(checked, name) for name in _Line.model_fields})
            else:
                raise RecordFormatError(f"import: fields are {sorted(found)[:5]}, need device or measurement (line {number})")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise RecordFormatError(f"import: {first['msg']} ({'.'.join(map(str, first['loc']))}, line {number})") from None
        except ProfileFormatError as error:
            raise RecordFormatError(f"import: {error} (line {number})") from None


def _parse(line: str, number: int) -> dict[str, Any]:
    nbytes = len(line.encode())
    if nbytes > MAX_LINE_BYTES:
        raise RecordFormatError(f"import: {nbytes} bytes, need at most {MAX_LINE_BYTES} (line {number})")
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordFormatError(f"import: not JSON, {error} (line {number})") from None
    if not isinstance(found, dict):
        raise RecordFormatError(f"import: {type(found).__name__}, need an object (line {number})")
    return found


def _check_load(text: str, number: int) -> None:
    try:
        Workload.from_text(text)
    except RecordFormatError as error:
        raise RecordFormatError(f"import: {error} (line {number})") from None


def _keep_device(store: Store, profile: DeviceProfile) -> None:
    try:
        store.devices.get(profile.fingerprint)
    except NotFoundError:
        store.devices.save(profile)
