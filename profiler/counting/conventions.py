"""Counting conventions: the totals that other tools print for the same model. Each tool has its own rules, named here.

Each convention is applied to the exported graph. Where the exporter folded a BatchNormalization into a convolution
(`OpProfile.folded_norm`), tools that look at the model before its export still see it: it is counted as a node of its own, and
the bias that folding made is not counted as a bias. What an export cannot tell is assumed to be the common case, and the
convention's description says so: an attention written as two MatMuls is a function call, which hooks on modules do not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from kernels.cost import FLOPS_PER_MAC
from kernels.record import record
from profiler.counting.counts import OpProfile, Profile
from profiler.errors import ConventionError

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
PRODUCTS = frozenset({"Gemm", "MatMul", "Einsum", "MatMulInteger", "QLinearMatMul"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@record
class Convention:
    """A way to count a model's cost.

    unit: what its tool calls the number. description: what it counts. source: repository and file of the tool that does it so.
    count: (a node that runs, the model's batch size) -> its cost.
    """

    name: str
    unit: str
    description: str
    source: str
    count: Callable[[OpProfile, int], int]


def convention_of(name: str) -> Convention:
    """Return the convention of that name. Raises ConventionError, which lists the names that exist."""
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise ConventionError(f"convention: {name!r} is unknown, need one of {', '.join(CONVENTIONS)}") from None


def count_as(profile: Profile, name: str) -> int:
    """Return a model's total by the named convention. Raises ConventionError for an unknown name."""
    count = convention_of(name).count
    return sum(times * count(op, profile.batch) for op, times in _running(profile.ops))


def compare(profile: Profile, names: Iterable[str] | None = None) -> dict[str, int]:
    """Return a model's totals by several conventions, by their names.

    Args:   names: the conventions to apply, None = all.
    Raises: ConventionError for an unknown name.
    """
    return {name: count_as(profile, name) for name in (CONVENTIONS if names is None else names)}


def _running(ops: tuple[OpProfile, ...], times: int = 1) -> Iterator[tuple[OpProfile, int]]:
    """Yield the counted nodes that run, and how often each does; control flow is replaced by the nodes of its bodies."""
    for op in ops:
        if op.body:
            yield from _running(op.body, times * op.executions)
        elif op.counted and not op.constant:
            yield op, times


def _out(op: OpProfile) -> int:
    """Count the elements of output 0."""
    spec = op.output_specs[0]
    return spec.elements if spec is not None else 0


def _in(op: OpProfile) -> int:
    """Count the elements of input 0."""
    spec = op.input_specs[0]
    return spec.elements if spec is not None else 0


def _has_bias(op: OpProfile) -> bool:
    """Say whether the layer had a bias of its own before the export."""
    position = 8 if op.op == "QLinearConv" else 2
    return op.op in CONVOLUTIONS | {"Gemm"} and any(op.input_names[position : position + 1]) and not op.folded_norm


def _is_module(op: OpProfile) -> bool:
    """Say whether the node was a layer with weights, which hooks on modules see; a product of two activations was not."""
    return op.op in CONVOLUTIONS or (op.op in PRODUCTS and bool(set(op.constant_inputs) & {0, 1, 3}))


def _batch_norm_elements(op: OpProfile) -> int:
    """Count the elements that a BatchNormalization normalises here, in a node of its own or folded into this one."""
    if op.op == "BatchNormalization":
        return _in(op)
    return _out(op) if op.folded_norm else 0


def _mode(op: OpProfile) -> str:
    """Return how a Resize interpolates; "" for other ops."""
    return str(op.attrs.get("mode", "")) if op.op in {"Resize", "Upsample"} else ""


def _macs(op: OpProfile, batch: int) -> int:
    return op.macs


def _flops(op: OpProfile, batch: int) -> int:
    return op.flops


def _fvcore(op: OpProfile, batch: int) -> int:
    cost = op.macs if op.op in CONVOLUTIONS | PRODUCTS else 0
    cost += 2 * _batch_norm_elements(op)
    if op.op in {"LayerNormalization", "GroupNormalization", "InstanceNormalization"}:
        cost += 5 * _in(op)
    elif op.op == "GlobalAveragePool":
        cost += _in(op)
    elif op.op == "GridSample":
        cost += 4 * _out(op)
    return cost + {"nearest": 1, "linear": 4}.get(_mode(op), 0) * _out(op)


def _torch(op: OpProfile, batch: int) -> int:
    return FLOPS_PER_MAC * op.macs if op.op in CONVOLUTIONS | PRODUCTS | {"Attention"} else 0


def _ptflops(op: OpProfile, batch: int) -> int:
    bias = _out(op) if op.op in CONVOLUTIONS and _has_bias(op) else 0
    return (op.macs if _is_module(op) else 0) + bias


def _thop(op: OpProfile, batch: int) -> int:
    cost = op.macs if _is_module(op) or op.op in RECURRENT else 0
    cost += 4 * _batch_norm_elements(op)
    if op.op in {"LayerNormalization", "InstanceNormalization"}:
        cost += 4 * _in(op)
    elif op.op == "AveragePool":
        cost += _out(op)
    elif op.op == "GlobalAveragePool":
        cost += _in(op) + _out(op)
    return cost + {"nearest": 1, "linear": 11, "cubic": 259}.get(_mode(op), 0) * _out(op)


def _ultralytics(op: OpProfile, batch: int) -> int:
    return FLOPS_PER_MAC * _thop(op, batch)


def _torchinfo(op: OpProfile, batch: int) -> int:
    output = op.output_specs[0]
    if output is None or not output.rank:
        return 0
    if op.op in CONVOLUTIONS:
        return op.macs + (_out(op) if _has_bias(op) else 0) + (2 * batch * output.shape[1] if op.folded_norm else 0)
    is_bias = op.op == "Add" and any(spec is not None and spec.rank == 1 for spec in op.input_specs)
    is_layer = _is_module(op) or op.op == "Gather" or op.op.endswith("Normalization")
    return batch * op.params if is_layer or is_bias else 0


def _paddle(op: OpProfile, batch: int) -> int:
    cost = op.macs if _is_module(op) else 0
    cost += _out(op) if op.op in CONVOLUTIONS and _has_bias(op) else 0
    cost += 2 * _batch_norm_elements(op)
    if op.op == "AveragePool":
        cost += _out(op)
    elif op.op == "GlobalAveragePool":
        cost += _in(op) + _out(op)
    elif op.op == "LeakyRelu":
        cost += _in(op)
    return cost


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "macs",
            "MACs",
            "multiply–accumulates of convolutions, matrix products, attention and recurrent ops",
            "edgewise",
            _macs,
        ),
        Convention("flops", "FLOPs", "2 per MAC, 1 per other scalar operation, biases included", "edgewise", _flops),
        Convention(
            "fvcore",
            "flops (1 per MAC)",
            "MACs without recurrent ops; BatchNormalization 2 an element, other norms 5, global average pool and interpolation",
            "facebookresearch/fvcore fvcore/nn/flop_count.py, jit_handles.py",
            _fvcore,
        ),
        Convention(
            "torch",
            "FLOPs (2 per MAC)",
            "convolutions, matrix products and fused attention, nothing else",
            "pytorch/pytorch torch/utils/flop_counter.py FlopCounterMode",
            _torch,
        ),
        Convention(
            "thop",
            "MACs",
            "layers only (products of two activations are 0, biases are dropped); norms 4 an element, average pools, resizing",
            "Lyken17/pytorch-OpCounter thop/vision/basic_hooks.py, calc_func.py",
            _thop,
        ),
        Convention(
            "ultralytics", "FLOPs", "twice the MACs of thop", "ultralytics/ultralytics utils/torch_utils.py", _ultralytics
        ),
        Convention(
            "ptflops",
            "MACs",
            "aten backend: convolutions with one more for a bias, linear layers without; fused attention is missed",
            "sovrasov/flops-counter.pytorch ptflops/aten_ops.py",
            _ptflops,
        ),
        Convention(
            "torchinfo",
            "mult-adds",
            "parameters × output positions of convolutions, bias included; any other layer's parameters once per batch entry",
            "TylerYep/torchinfo torchinfo/layer_info.py calculate_macs",
            _torchinfo,
        ),
        Convention(
            "paddle",
            "FLOPs (1 per MAC)",
            "layers only; one more for a convolution's bias; BatchNormalization 2 an element, average pools",
            "PaddlePaddle/Paddle python/paddle/hapi/dynamic_flops.py",
            _paddle,
        ),
    )
}
