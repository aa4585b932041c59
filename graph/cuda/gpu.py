"""The GPU that this process uses: one context and one set of loaded kernels for all models."""

from __future__ import annotations

import functools
import statistics
import threading
from collections.abc import Callable, Sequence

from kernels.cuda.driver import Context, Device, Driver, Stream
from kernels.cuda.program import Addresses, Kernels, Launch

REPEATS = 5  # of a measurement, of which the median counts
CALLS = 20  # of a launch in one measurement


class Gpu:
    """A GPU in use. One thread at a time loads kernels or measures."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.context: Context = device.open()
        self.kernels = Kernels(self.context)
        self.lock = threading.RLock()

    def time_ns(self, work: Callable[[Stream], None], calls: int = CALLS) -> float:
        """Return the nanoseconds of some work, the median of runs of `calls` of it in one graph."""
        with self.context.stream() as stream:
            with stream.capture() as graph:
                for _ in range(calls):
                    work(stream)
            taken_ns = self.time_graph_ns(graph.launch, stream)
            graph.close()
        return taken_ns / calls

    def time_graph_ns(self, launch: Callable[[Stream], None], stream: Stream, repeats: int = REPEATS) -> float:
        """Return the nanoseconds that a graph takes, the median of several launches."""
        launch(stream)
        found = []
        with self.context.event() as start, self.context.event() as end:
            for _ in range(repeats):
                stream.record(start)
                launch(stream)
                stream.record(end)
                end.synchronize()
                found.append(end.elapsed_ns(start))
        return statistics.median(found)

    def time_launch_ns(self, launch: Launch, addresses: Addresses) -> float:
        """Return the nanoseconds of a launch among many, its data in L2 where they fit."""
        self.kernels.function(launch.kernel)
        return self.time_ns(lambda stream: self.kernels.launch(launch, addresses, stream))

    def load(self, launches: Sequence[Launch]) -> None:
        """Load the kernels of launches."""
        with self.lock:
            for launch in launches:
                self.kernels.function(launch.kernel)


@functools.cache
def shared_gpu() -> Gpu:
    """Return the first GPU. Raises NoDriverError where there is none, GpuUnsupportedError where it is too old."""
    return Gpu(Driver().device())
