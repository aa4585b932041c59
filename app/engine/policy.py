"""Queueing and batching rules of one model, in the names of the protocol's model configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Microseconds = Annotated[int, msgspec.Meta(ge=0, le=3_600_000_000)]
_Level = Annotated[int, msgspec.Meta(ge=0, le=64)]
_Rows = Annotated[int, msgspec.Meta(ge=1, le=65_536)]

NS_PER_US = 1_000


class QueuePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one priority level; 0 means no limit. A client's own timeout can only shorten the default one."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: _Microseconds = 0
    allow_timeout_override: bool = False
    max_queue_size: _Count = 0

    def expires_ns(self, arrived_ns: int, deadline_ns: int | None) -> int | None:
        """Return when a request expires, on the clock of its arrival; None = never. deadline_ns: the client's own."""
        own = arrived_ns + self.default_timeout_microseconds * NS_PER_US if self.default_timeout_microseconds else None
        if deadline_ns is None or not self.allow_timeout_override:
            return own
        return deadline_ns if own is None else min(own, deadline_ns)

    def run_deadline_ns(self, deadline_ns: int | None) -> int | None:
        """Return when the run of a request must have ended; None = no matter when. deadline_ns: the client's own.

        It counts where it ends the wait of the request too. The default timeout is one of the queue alone.
        """
        return deadline_ns if self.allow_timeout_override and self.timeout_action == "REJECT" else None


class DynamicBatching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests wait to be batched.

    max_queue_delay_microseconds: how long a batch may be held for more requests; None = as long as the batch curve says it gains.
    """

    preferred_batch_size: tuple[_Rows, ...] = ()
    max_queue_delay_microseconds: _Microseconds | None = None
    preserve_ordering: bool = False
    priority_levels: _Level = 0
    default_priority_level: _Level = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[str, QueuePolicy] = {}

    @property
    def levels(self) -> range:
        """The priority levels; 1 is the highest."""
        return range(1, max(self.priority_levels, 1) + 1)

    def level(self, priority: int) -> int:
        """Return the level of a request's priority; 0 and unknown levels map to the default one."""
        if priority in self.levels:
            return priority
        return self.default_priority_level if self.default_priority_level in self.levels else self.levels[-1]

    def queue_policy(self, level: int) -> QueuePolicy:
        """Return the limits of that level."""
        return self.priority_queue_policy.get(str(level), self.default_queue_policy)


PRIORITIES = 9  # 1 is the highest; the default is the one in the middle
AUTOMATIC = DynamicBatching(
    priority_levels=PRIORITIES,
    default_priority_level=(PRIORITIES + 1) // 2,
    default_queue_policy=QueuePolicy(allow_timeout_override=True),
)


class InstanceGroup(msgspec.Struct, frozen=True):
    """How many runs of the model may go on side by side; they divide the cores."""

    count: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    name: str = ""
    kind: Literal["KIND_AUTO", "KIND_CPU", "KIND_MODEL"] = "KIND_AUTO"


class Rules(msgspec.Struct, frozen=True):
    """Batching and planning rules of a model, from the file beside it or the config of a load request.

    max_batch_size: rows that may share a run, taken without proof; 0 = no batching, absent = where batching is proven safe.
    objective, max_error: which plans the model runs; absent = latency, and no limit. plan: the id of a stored plan that it runs
    whatever it was made for, or the id's first digits; absent = the newest that fits.
    """

    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=1_048_576)] | None = None
    dynamic_batching: DynamicBatching | None = None
    instance_group: tuple[InstanceGroup, ...] = ()
    objective: Literal["latency", "throughput", "memory"] | None = None
    max_error: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    plan: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8,64}$")] | None = None

    @property
    def instances(self) -> int | None:
        """Configured number of runs side by side; None without an instance_group."""
        return sum(group.count for group in self.instance_group) or None

    def over(self, other: Rules) -> Rules:
        """Return these rules, with values of `other` where these have none."""
        return Rules(
            other.max_batch_size if self.max_batch_size is None else self.max_batch_size,
            self.dynamic_batching or other.dynamic_batching,
            self.instance_group or other.instance_group,
            self.objective or other.objective,
            other.max_error if self.max_error is None else self.max_error,
            self.plan or other.plan,
        )


def ladder(max_rows: int, preferred: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the batch sizes that are run: powers of two, the preferred sizes and the largest. Few, since each is compiled."""
    powers = {1 << bits for bits in range(max_rows.bit_length()) if 1 << bits <= max_rows}
    return tuple(sorted(powers | {size for size in preferred if size <= max_rows} | {max_rows}))
