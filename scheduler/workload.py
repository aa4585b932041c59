"""Workloads: the work of a candidate, the threads that share it and the bytes converted for it, as cost models see it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graph.native.work import Layout, Work
from kernels.precision import Precision
from kernels.record import record
from scheduler.errors import RecordFormatError
from scheduler.strategy import MAX_THREADS

MAX_CHARACTERS: Final = 4096  # of a workload's text

_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
_Number = Annotated[float, Field(ge=0, le=1e24, allow_inf_nan=False)]


@record
class Workload:
    """The work of a candidate where it runs.

    work: arithmetic and bytes, as its rule knows them. threads: that share it. converted_bytes: read and written to bring its
    input into the layout that it wants.
    """

    work: Work
    threads: int
    converted_bytes: int = 0

    def to_text(self) -> str:
        """Return the JSON text that is stored beside a measurement; fields with default values are left out."""
        return _Text(**asdict(self.work), threads=self.threads, converted_bytes=self.converted_bytes).model_dump_json(
            exclude_defaults=True
        )

    @staticmethod
    def from_text(text: str) -> Workload:
        """Read the text of `to_text`. Raises RecordFormatError naming the first field that breaks a limit."""
        if len(text) > MAX_CHARACTERS:
            raise RecordFormatError(f"workload: {len(text)} characters, need at most {MAX_CHARACTERS}")
        try:
            found = _Text.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise RecordFormatError(f"workload: {first['msg']} ({'.'.join(map(str, first['loc'])) or 'the text'})") from None
        work = found.model_dump(exclude={"threads", "converted_bytes"})
        return Workload(Work(**work), found.threads, found.converted_bytes)


class _Text(BaseModel):
    """The stored form: the fields of `Work` and of `Workload`, with their limits."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,80}$")]
    flops: _Number
    macs: _Count | None = None
    read_bytes: _Count = 0
    write_bytes: _Count = 0
    weight_bytes: _Count = 0
    buffer_bytes: _Count = 0
    chunks: Annotated[int, Field(ge=1, lt=1 << 62)] = 1
    calls: Annotated[int, Field(ge=1, lt=1 << 62)] = 1
    tile: Annotated[tuple[_Count, ...], Field(max_length=8)] = ()
    wants: Layout = "any"
    error: _Number = 0.0
    precision: Precision = "fp32"
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    converted_bytes: _Count = 0
