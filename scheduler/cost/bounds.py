"""Estimates of a candidate's time on a device before it was measured: the roofline of its workload.

The roofline model (Williams, Waterman, Patterson 2009, CACM 52(4)) bounds a workload by arithmetic and by memory traffic; here
every level of memory has a bandwidth of its own, and conversions and calls are added. Native kernels share their arithmetic, as
their port models count it, between all threads. Matrix products of numpy run on BLAS, on all threads, at the device's GEMM rate;
all other numpy passes run on one thread and move memory.

`scheduler.cost.fitting` corrects these estimates by measurements, and a stored measurement of the candidate itself takes
precedence over both (`scheduler.planning.planner`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes

from graph.ir import CONTROL_FLOW, Node, Specs
from graph.native.work import Work
from kernels.cost import FLOPS_PER_MAC
from kernels.precision import PRECISIONS, Precision
from kernels.record import record
from kernels.registry import Kernel, find
from kernels.spec import FLOATS
from profiler.counting.counts import OpProfile
from profiler.device.profile import DeviceProfile
from scheduler.plan import BoundBy
from scheduler.workload import Workload

UNCERTAINTY = 2.5  # assumed factor, each way, by which an estimate may be off where nothing was fitted
NATIVE_EFFICIENCY = 0.9  # of the measured FMA peak that convolutions and products reach; `make bench` shows it shape by shape
NATIVE_STEP_NS = 500.0  # a barrier, and the wait of other threads for the last chunk of a step
NUMPY = "numpy_"  # before the algorithm, the kind of a numpy kernel
_BLAS = frozenset({"blas", "gemm", "im2col"})
_PRODUCTS: Mapping[Precision, int] = {"bf16": 2, "int8": 4}  # that an instruction adds to each sum
_PASSES_PER_TAP = 4  # multiply reads two and writes one, add reads and writes: counted in planes that miss the registers


@record
class Roofline:
    """The parts of a workload's estimated time on a device, in nanoseconds. level: of memory that holds its working set."""

    compute_ns: float
    memory_ns: float
    weights_ns: float
    conversion_ns: float
    calls_ns: float
    level: str

    @property
    def ns(self) -> float:
        """The estimate: the larger of arithmetic and memory, plus conversions and calls, which overlap with neither."""
        return max(self.compute_ns, self.memory_ns + self.weights_ns) + self.conversion_ns + self.calls_ns

    @property
    def bound_by(self) -> BoundBy:
        """The largest part: arithmetic, bytes moved, or calls."""
        moved_ns = self.memory_ns + self.weights_ns + self.conversion_ns
        largest = max(self.compute_ns, moved_ns, self.calls_ns)
        return "compute" if largest == self.compute_ns else "memory" if largest == moved_ns else "dispatch"


class Rooflines:
    """Rooflines of workloads by the rates of one device, which are looked up once for each thread count."""

    def __init__(self, device: DeviceProfile) -> None:
        self._device = device
        self._rates: dict[int, _Rates] = {}

    def of(self, load: Workload) -> Roofline:
        """Return the roofline of a workload."""
        work, threads = load.work, load.threads
        if work.kind.startswith(NUMPY):
            return self._numpy(work, threads)
        rates = self._at(threads)
        moved_bytes = work.read_bytes + work.write_bytes + 2 * work.buffer_bytes
        converting_ns = NATIVE_STEP_NS if load.converted_bytes else 0.0
        return Roofline(
            compute_ns=1e9
            * work.flops
            * imbalance(work.chunks, threads)
            / (NATIVE_EFFICIENCY * rates.instruction[work.precision]),
            memory_ns=rates.transfer_ns(moved_bytes),
            weights_ns=rates.transfer_ns(work.weight_bytes),
            conversion_ns=rates.transfer_ns(load.converted_bytes) + converting_ns,
            calls_ns=NATIVE_STEP_NS * work.calls,
            level=rates.level_of(moved_bytes),
        )

    def _numpy(self, work: Work, threads: int) -> Roofline:
        workers = threads if work.flops else 1
        rates = self._at(workers)
        moved_bytes = work.read_bytes + work.write_bytes + work.weight_bytes
        return Roofline(
            compute_ns=1e9 * work.flops / self._device.peak_ops_per_s("fp32", workers, "gemm") if work.flops else 0.0,
            memory_ns=rates.transfer_ns(moved_bytes),
            weights_ns=0.0,
            conversion_ns=self._at(1).transfer_ns(2 * work.buffer_bytes),  # filled and read back by one thread before BLAS starts
            calls_ns=self._device.overheads.numpy_call.value * work.calls,
            level=rates.level_of(moved_bytes),
        )

    def _at(self, threads: int) -> _Rates:
        if threads not in self._rates:
            device, capacities = self._device, self._device.capacities_bytes(threads)
            self._rates[threads] = _Rates(
                instruction={precision: self._instruction(precision, threads) for precision in PRECISIONS},
                levels=tuple(
                    (level, nbytes, device.bandwidth_bytes_per_s(level, threads))
                    for level, nbytes in {**capacities, "DRAM": math.inf}.items()
                ),
            )
        return self._rates[threads]

    def _instruction(self, precision: Precision, threads: int) -> float:
        """Return the FLOP/s of fp32 at which as many instructions run in a second as do of a precision.

        Port models count those of any precision as multiply–adds of fp32. Where a device has no instruction for it, kernels take
        some of fp32's, which port models count.
        """
        single, products = self._device.peak_ops_per_s("fp32", threads), _PRODUCTS.get(precision, 1)
        measured = any((peak.precision, peak.kind) == (precision, "instruction") for peak in self._device.peaks)
        return self._device.peak_ops_per_s(precision, threads) / products if measured and products > 1 else single


@record
class _Rates:
    """Rates at one thread count.

    instruction: FLOP/s of fp32 by precision. levels: name, capacity in bytes and bytes a second, innermost first.
    """

    instruction: Mapping[Precision, float]
    levels: tuple[tuple[str, float, float], ...]

    def level_of(self, nbytes: int) -> str:
        return next(level for level, holds, _ in self.levels if nbytes <= holds)

    def transfer_ns(self, nbytes: int) -> float:
        return next(1e9 * nbytes / rate for _, holds, rate in self.levels if nbytes <= holds)


def imbalance(chunks: int, threads: int) -> float:
    """Return how much longer threads take to share whole chunks than to share the work evenly: a factor of at least 1.

    One chunk stands for an unknown number of them, because only port models count chunks; its factor is 1.
    """
    return 1.0 if chunks <= 1 else math.ceil(chunks / threads) * threads / chunks


def numpy_work(node: Node, cost: OpProfile, kernel: Kernel, specs: Specs) -> Work:
    """Return the work of a numpy kernel on a node. cost: the node's counted arithmetic and bytes (`count_nodes`)."""
    inputs = [specs[name] if name else None for name in node.inputs]
    macs = kernel.executed_macs(*inputs, **node.attrs) if kernel.executed_macs else cost.macs
    on_blas = kernel.algorithm in _BLAS
    passes = 0
    if macs and cost.write_bytes and not on_blas:  # depthwise: a pass over the output for every tap
        passes = _PASSES_PER_TAP * math.ceil(macs / max(1, _elements(node, specs)))
    return Work(
        kind=f"{NUMPY}{kernel.algorithm}",
        flops=float(FLOPS_PER_MAC * macs) if on_blas else 0.0,
        macs=macs,
        read_bytes=cost.read_bytes - cost.param_bytes + passes * cost.write_bytes,
        write_bytes=cost.write_bytes,
        weight_bytes=cost.param_bytes,
        buffer_bytes=kernel.workspace_bytes(*inputs, **node.attrs) if kernel.workspace_bytes else 0,
        calls=1 + len(node.epilogue),
    )


def error_of(node: Node, specs: Specs) -> float:
    """Return the tolerance that the node's op declares, relative to its largest output; control flow declares none."""
    spec = specs.get(node.outputs[0]) if node.outputs[0] else None
    if spec is None or spec.dtype not in FLOATS or node.op in CONTROL_FLOW:
        return 0.0
    return float(find(node.op).tolerance_eps) * float(ml_dtypes.finfo(spec.dtype).eps)  # type: ignore[no-untyped-call]


def _elements(node: Node, specs: Specs) -> int:
    spec = specs.get(node.outputs[0])
    return spec.elements if spec is not None else 1
