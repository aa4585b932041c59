"""What a step should take on a device: the roofline of its work, in the shape the numpy kernels really have.

A prediction before anything was measured. Matrix products run on BLAS, on all threads, at the device's measured GEMM rate; all
other numpy passes run on one thread and move memory. Stored measurements overrule predictions (`scheduler.planner`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes

from graph.ir import Node, Specs
from graph.native.rule import Transformed
from kernels.cost import FLOPS_PER_MAC
from kernels.registry import Kernel, find
from kernels.spec import FLOATS
from profiler.counts import OpProfile
from profiler.device import DeviceProfile
from scheduler.plan import BoundBy

UNCERTAINTY = 2.5  # how far an unmeasured prediction may be off, as a factor each way; an assumption, not a fit
NATIVE_EFFICIENCY = 0.9  # of the measured FMA peak that convolutions and products reach; `make bench` shows it shape by shape
NATIVE_STEP_NS = 500.0  # a barrier, and what the last chunk of a step keeps the other threads waiting
NATIVE_RANK = 0.02  # each candidate is taken for that much slower than the one before it
_BLAS = frozenset({"blas", "gemm", "im2col"})
_PASSES_PER_TAP = 4  # multiply reads two and writes one, add reads and writes: counted in planes that miss the registers


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one kernel takes on one node.

    level: where its working set lies. executed_macs: what it really multiplies. error: that its algorithm adds to rounding,
    relative to the largest output.
    """

    ns: float
    bound_by: BoundBy
    level: str
    workspace_bytes: int
    executed_macs: int
    error: float = 0.0


def estimate(node: Node, cost: OpProfile, kernel: Kernel, specs: Specs, device: DeviceProfile, threads: int) -> Estimate:
    """Predict one kernel on one node. cost: what the node asks for (`count_nodes`)."""
    inputs = [specs[name] if name else None for name in node.inputs]
    workspace_bytes = kernel.workspace_bytes(*inputs, **node.attrs) if kernel.workspace_bytes else 0
    macs = kernel.executed_macs(*inputs, **node.attrs) if kernel.executed_macs else cost.macs
    on_blas = kernel.algorithm in _BLAS
    workers = threads if on_blas else 1
    moved_bytes = cost.read_bytes + cost.write_bytes
    compute_ns = 0.0
    if macs and on_blas:
        compute_ns = 1e9 * FLOPS_PER_MAC * macs / device.peak_ops_per_s("fp32", workers, "gemm")
    elif macs and cost.write_bytes:  # depthwise: a pass over the output for every tap
        moved_bytes += _PASSES_PER_TAP * math.ceil(macs / max(1, _elements(node, specs))) * cost.write_bytes
    level = device.level_of(moved_bytes, workers)
    memory_ns = 1e9 * moved_bytes / device.bandwidth_bytes_per_s(level, workers)
    dispatch_ns = device.overheads.numpy_call.value * (1 + len(node.epilogue))
    largest = max(compute_ns, memory_ns, dispatch_ns)
    bound_by: BoundBy = "compute" if largest == compute_ns else "memory" if largest == memory_ns else "dispatch"
    spent_ns = max(compute_ns, memory_ns) + _copy_ns(workspace_bytes, device) + dispatch_ns
    return Estimate(spent_ns, bound_by, level, workspace_bytes, macs)


def estimate_native(
    cost: OpProfile, rank: int, device: DeviceProfile, threads: int, transformed: Transformed | None = None
) -> Estimate:
    """Predict the candidate of that rank of a node that runs in a native segment: its work is shared by all threads.

    The rule that lists candidates has ranked them; how far they lie apart only a measurement can tell.
    """
    moved_bytes = cost.read_bytes + cost.write_bytes
    rate = NATIVE_EFFICIENCY * device.peak_ops_per_s("fp32", threads)
    macs, error = (cost.macs, 0.0) if transformed is None else (transformed.macs, transformed.error)
    compute_ns = 1e9 * FLOPS_PER_MAC * macs / rate
    level = device.level_of(moved_bytes, threads)
    memory_ns = 1e9 * moved_bytes / device.bandwidth_bytes_per_s(level, threads)
    largest = max(compute_ns, memory_ns, NATIVE_STEP_NS)
    bound_by: BoundBy = "compute" if largest == compute_ns else "memory" if largest == memory_ns else "dispatch"
    spent_ns = (max(compute_ns, memory_ns) + NATIVE_STEP_NS) * (1 + rank * NATIVE_RANK)
    return Estimate(spent_ns, bound_by, level, 0, macs, error)


def _copy_ns(workspace_bytes: int, device: DeviceProfile) -> float:
    """Filling the workspace and reading it back, which nothing overlaps: one thread copies before BLAS starts."""
    level = device.level_of(workspace_bytes, 1)
    return 1e9 * 2 * workspace_bytes / device.bandwidth_bytes_per_s(level, 1)


def error_of(node: Node, specs: Specs) -> float:
    """The tolerance the node's op declares, relative to the largest output."""
    spec = specs.get(node.outputs[0]) if node.outputs[0] else None
    if spec is None or spec.dtype not in FLOATS:
        return 0.0
    return float(find(node.op).tolerance_eps) * float(ml_dtypes.finfo(spec.dtype).eps)  # type: ignore[no-untyped-call]


def _elements(node: Node, specs: Specs) -> int:
    spec = specs.get(node.outputs[0])
    return spec.elements if spec is not None else 1
