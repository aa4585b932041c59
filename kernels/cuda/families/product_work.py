"""What the parts of a product's kernel share: precisions, tiles, and a chunk while its code is emitted."""

from __future__ import annotations

from math import log
from typing import Literal, Protocol

from kernels.cuda.emit import builder as gpu
from kernels.cuda.emit.descriptor import Fields
from kernels.cuda.emit.epilogue import STORAGES
from kernels.cuda.emit.unit import ROW_BYTES, Block, FmaUnit, GroupUnit, MathUnit, TensorUnit
from kernels.expression import Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import F32, Type
from kernels.record import record

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

TF32 = TensorUnit("f32.tf32.tf32", 8, rounds=True)
UNITS: dict[Precision, tuple[Type, MathUnit]] = {
    "fp32": (F32, FmaUnit()),
    "tf32": (F32, TF32),
    "bf16": (STORAGES["bf16"], TensorUnit("f32.bf16.bf16", 16)),
    "fp16": (STORAGES["fp16"], TensorUnit("f32.f16.f16", 16)),
}
GROUP_UNITS: dict[Precision, GroupUnit] = {
    "tf32": GroupUnit("f32.tf32.tf32", 8, ", 1, 1"),
    "bf16": GroupUnit("f32.bf16.bf16", 16, ", 1, 1, 0, 0"),
    "fp16": GroupUnit("f32.f16.f16", 16, ", 1, 1, 0, 0"),
}


@record
class Tile:
    """The results of a block of threads. across, down: warps side by side and one above another.  stages: of shared memory.

    deep: teams of such warps, which take the steps of the depth in turn, each in stages of its own; then the first adds up their
    sums. A step's latency is what a single team waits for most.
    """

    rows: int
    columns: int
    down: int
    across: int
    stages: int
    deep: int = 1

    @property
    def team(self) -> int:
        """Threads of a team."""
        return 32 * self.down * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.team * self.deep

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage: 128 bytes of depth of every row and column."""
        return (self.rows + self.columns) * ROW_BYTES

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.deep * self.team_bytes

    @property
    def team_bytes(self) -> int:
        """Shared memory of a team."""
        return self.stages * self.stage_bytes

    @property
    def block(self) -> Block:
        """The results of a warp."""
        return Block(self.rows // self.down, self.columns // self.across)

    @property
    def name(self) -> str:
        """Text that tells tiles apart."""
        return f"{self.rows}x{self.columns}w{self.down}x{self.across}s{self.stages}" + (f"d{self.deep}" if self.deep > 1 else "")


# What a factor of fp32 loses on average where wgmma cuts it to the 11 bits of tf32: half of a last place of a mantissa m, which
# is spread as 1 / m. Without making up for it, every layer of a network shrinks its results by that much.
CUT = 2.0**-11 / (2 * log(2))


class Code(Protocol):
    """What a product's code depends on: see `kernels.cuda.families.product.Form`."""

    @property
    def precision(self) -> Precision: ...  # noqa: D102
    @property
    def tile(self) -> Tile: ...  # noqa: D102
    @property
    def windows(self) -> bool: ...  # noqa: D102
    @property
    def copy_bytes(self) -> int: ...  # noqa: D102
    @property
    def item_bytes(self) -> int: ...  # noqa: D102
    @property
    def whole(self) -> bool: ...  # noqa: D102
    @property
    def bias(self) -> bool: ...  # noqa: D102
    @property
    def expression(self) -> Expression: ...  # noqa: D102
    @property
    def groups(self) -> bool: ...  # noqa: D102
    @property
    def early(self) -> bool: ...  # noqa: D102
    @property
    def cluster(self) -> int: ...  # noqa: D102
    @property
    def joins(self) -> bool: ...  # noqa: D102


@record
class Work:
    """What the parts of a chunk share. thread: its number in the team.  shared: where the team's shared memory begins.

    team: the team's number; None where the block is one.
    """

    fields: Fields
    form: Code
    thread: Value
    shared: Value
    team: Value | None = None

    @staticmethod
    def of(fields: Fields, form: Code, thread: Value) -> Work:
        """Return what a chunk's parts share. thread: its number in the block."""
        tile, shared = form.tile, gpu.shared_base(fields.k)
        if tile.deep == 1:
            return Work(fields, form, thread, shared)
        team = thread // tile.team
        return Work(fields, form, thread % tile.team, shared + team * tile.team_bytes, team)

    def meet(self) -> None:
        """Emit the wait until every thread of the team has come here."""
        if self.team is None:
            gpu.meet(self.k)
        else:
            gpu.meet_team(self.k, self.team, self.form.tile.team)

    @property
    def k(self) -> Function:
        """The builder."""
        return self.fields.k

    @property
    def unit(self) -> MathUnit:
        """What multiplies tiles; groups of warps keep their results as it does."""
        return UNITS[self.form.precision][1]

    @property
    def lane(self) -> Value:
        """The thread's number in its warp."""
        return self.thread & 31

    def warp_start(self) -> tuple[Value, Value]:
        """Return the first row and the first column of the thread's warp in a tile."""
        tile, warp = self.form.tile, self.k.shift("lshr", self.thread, 5)
        return (warp % tile.down) * tile.block.rows, (warp // tile.down) * tile.block.columns
