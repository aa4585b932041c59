"""What a backend is to the executor: it refuses nodes, gathers the others into segments, compiles these and runs them.

`numpy` is what is left: it runs every node that no segment holds, by the kernels of the operators' own modules. `graph.native`
and `graph.cuda` are backends; each is a folder, and nothing else knows what is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from graph.budget import RunBudget
from graph.choice import Choice
from graph.ir import Graph, Node, Specs
from graph.memory import Held
from graph.native.facts import Kept
from graph.native.place import PackedConstant
from graph.timing import SegmentClock
from kernels.precision import Precision
from kernels.size import Size, Sizes
from kernels.spec import Array


def find_backend(name: str, precisions: Sequence[Precision] = ("fp32",)) -> Backend | None:
    """Return a backend for one model by its name, None where numpy runs it alone.

    name: "numpy", "native", "cuda", or "auto": native where this machine has an instruction set for it. precisions: in which
    products of float32 may be computed, the one to use without a choice first; a GPU takes that.
    Raises: IsaError for "native" where there is no instruction set; NoDriverError for "cuda" where there is no GPU.
    """
    if name == "numpy":
        return None
    if name == "cuda":
        from graph.cuda.engine import Cuda  # noqa: PLC0415  other backends start without it

        return Cuda.of(precisions[0])
    from graph.native.engine import find_native  # noqa: PLC0415  as above

    return find_native(name, precisions)


class Segment(Protocol):
    """A part of a graph that a backend runs whole, for one set of sizes. Not thread-safe: one run at a time.

    nodes: in order. choices: how each that does work is computed, by its name. at_work: their positions. arena_bytes: memory that
    a run borrows from the executor; a device of its own needs none. held: what lies there while each node runs.
    """

    @property
    def nodes(self) -> tuple[Node, ...]: ...  # noqa: D102
    @property
    def choices(self) -> Mapping[str, Choice]: ...  # noqa: D102
    @property
    def at_work(self) -> frozenset[int]: ...  # noqa: D102
    @property
    def arena_bytes(self) -> int: ...  # noqa: D102
    @property
    def held(self) -> tuple[Held, ...]: ...  # noqa: D102

    def macs(self, node: Node) -> int | None:
        """Return the multiply–accumulates of a node's algorithm, or None where they are those of the op's definition."""

    def resize(self, sizes: Sizes) -> bool:
        """Serve other sizes of the same lowering. False, and nothing is done, where that takes a new segment."""

    def run(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int, stop: Array) -> None:
        """Run once. All arrays are contiguous. outputs: memory for the results. stop: what a backend looks at between kernels."""

    def run_timed(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int) -> SegmentClock:
        """Run once, and say how long each call has taken."""


class LoweredSegment(Protocol):
    """A part of a graph as kernels, before their sizes are known. packed: weights that it holds in the host's memory."""

    @property
    def packed(self) -> tuple[PackedConstant, ...]: ...  # noqa: D102

    def find_sizes(self, found: dict[Size, None]) -> None:
        """Add the sizes that a segment of it needs values of."""

    def replace_constants(self, specs: Specs, constants: Mapping[str, Array]) -> None:
        """Read these from now on: equal values, some of them stored in less memory."""


class Backend(Protocol):
    """A backend, for one model. name: of its choices.  resizes: whether a lowering serves sizes that differ from its own."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def resizes(self) -> bool: ...  # noqa: D102

    def refusals(self, graph: Graph, specs: Specs) -> dict[str, str]:
        """Return why nodes cannot run here, by the name of each that cannot."""

    def refusal(self, node: Node, graph: Graph, specs: Specs) -> str | None:
        """Return why a node cannot run here, or None where it can."""

    def candidates(self, node: Node, graph: Graph, specs: Specs, threads: int) -> Sequence[Choice]:
        """Return the ways to compute a node that is not refused, first the one to use unmeasured."""

    def lowered(
        self,
        graph: Graph,
        specs: Specs,
        threads: int,
        choices: Mapping[str, Choice],
        budget: RunBudget,
        kept: Mapping[str, Kept] = MappingProxyType({}),
    ) -> tuple[Graph, Mapping[str, Any]]:
        """Return the graph with a node for each segment, and the lowered segments by these nodes' names.

        choices: by node name; a node without one runs here where it can. budget: of the host's memory. kept: values that grow in
        place, by the name of the output.
        Raises: UnsupportedError where this backend is chosen for a node that it refuses; LimitError; OutOfMemoryError.
        """

    def count_packed(self, packed: Iterable[PackedConstant], budget: RunBudget, name: str) -> None:
        """Count weights that segments hold in the host's memory. name: of the graph."""

    def bind(self, segments: Mapping[str, Any], sizes: Sizes, threads: int, *, roomy: bool) -> Mapping[str, Segment]:
        """Return what runs, of lowered segments, for some values of their sizes."""
