"""The bodies that If, Loop, Scan and SequenceMap run, and how often, as far as that is known before the run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from graph.ir import BATCHED, CONTROL_FLOW, Graph, Node, Specs
from graph.shapes import propagate
from kernels.errors import InvalidError, UnsupportedError
from kernels.record import record
from kernels.spec import Array, Spec


@record
class BodyRun:
    """A body and the specs of all its values, captured ones included."""

    graph: Graph
    specs: Specs


@record
class Bodies:
    """The bodies that a control flow node may run.

    runs: one of these graphs runs `executions` times; empty where that is not known. reason: why not, or what was assumed.
    """

    runs: tuple[BodyRun, ...] = ()
    executions: int = 1
    reason: str = ""


def bodies_of(node: Node, specs: Specs) -> Bodies | None:
    """Return the bodies of a control flow node; None for other nodes."""
    if node.op not in CONTROL_FLOW:
        return None
    if node.op == "SequenceMap" or node.attrs.get(BATCHED):
        return Bodies(reason="how often its body runs is only known at run time")
    return {"If": _if, "Loop": _loop, "Scan": _scan}[node.op](node, specs)


def _if(node: Node, specs: Specs) -> Bodies:
    condition = _known(specs, node.inputs[0])
    branches = [node.attrs["then_branch"], node.attrs["else_branch"]]
    if condition is not None:
        branches = [branches[0] if bool(condition.reshape(-1)[0]) else branches[1]]
    if condition is not None:
        return Bodies(tuple(BodyRun(branch, propagate(branch, {}, specs)) for branch in branches))
    runs = []
    for branch in branches:
        with contextlib.suppress(InvalidError, UnsupportedError):  # of one branch: no run takes it
            runs.append(BodyRun(branch, propagate(branch, {}, specs)))
    return Bodies(tuple(runs), 1, "the condition is only known at run time, the costlier branch is counted")


def _loop(node: Node, specs: Specs) -> Bodies:
    """Return a Loop's body where the trip count is known and the condition never ends the loop earlier."""
    trips, condition = (_known(specs, node.inputs[i]) if len(node.inputs) > i else None for i in (0, 1))
    body: Graph = node.attrs["body"]
    if trips is None:
        return Bodies(reason="the trip count is only known at run time")
    if len(node.inputs) > 1 and node.inputs[1] and condition is None:
        return Bodies(reason="whether the loop starts is only known at run time")
    if condition is not None and not bool(condition.reshape(-1)[0]):
        return Bodies((BodyRun(body, {}),), 0)
    carried = [specs.get(name) for name in node.inputs[2:]]
    if any(spec is None for spec in carried):
        return Bodies(reason="the shape of a carried value is only known at run time")
    scalars = [Spec((), np.dtype(np.int64)), Spec.of(np.array(True))]
    inputs = [*scalars, *(spec.with_value(None) for spec in carried if spec is not None)]
    inner = propagate(body, dict(zip((port.name for port in body.inputs), inputs, strict=True)), specs)
    goes_on = _known(inner, body.outputs[0].name)
    if goes_on is None or not bool(goes_on.reshape(-1)[0]):
        return Bodies(reason="the loop may end early, its condition is only known at run time")
    if not _carries(inner, [port.name for port in body.outputs[1 : 1 + len(carried)]], inputs[2:]):
        return Bodies(reason="the shape of a carried value changes from trip to trip")
    return Bodies((BodyRun(body, inner),), int(trips.reshape(-1)[0]))


def _scan(node: Node, specs: Specs) -> Bodies:
    """Return a Scan's body: it runs once for each position of the scanned axis."""
    body: Graph = node.attrs["body"]
    scanned = int(node.attrs["num_scan_inputs"])
    known = [specs.get(name) for name in node.inputs]
    if any(spec is None for spec in known):
        return Bodies(reason="the shape of an input is only known at run time")
    inputs = [spec.with_value(None) for spec in known if spec is not None]
    states, sequences = inputs[:-scanned], inputs[-scanned:]
    axes = list(node.attrs.get("scan_input_axes") or [0] * scanned)
    lengths = {spec.shape[axis] for spec, axis in zip(sequences, axes, strict=True)}
    slices = [_without(spec, axis) for spec, axis in zip(sequences, axes, strict=True)]
    names = [port.name for port in body.inputs]
    inner = propagate(body, dict(zip(names, [*states, *slices], strict=True)), specs)
    if not _carries(inner, [port.name for port in body.outputs[: len(states)]], states):
        return Bodies(reason="the shape of a carried value changes from step to step")
    return Bodies((BodyRun(body, inner),), max(lengths, default=0))


def _carries(inner: Specs, outputs: Sequence[str], inputs: Sequence[Spec]) -> bool:
    return all(inner.get(name) == spec for name, spec in zip(outputs, inputs, strict=True))


def _known(specs: Specs, name: str) -> Array | None:
    spec = specs.get(name) if name else None
    return None if spec is None else spec.value


def _without(spec: Spec, axis: int) -> Spec:
    shape = list(spec.shape)
    del shape[axis]
    return Spec(tuple(shape), spec.dtype)
