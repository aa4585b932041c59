"""Whole models on an NVIDIA GPU: the time of a replay by precision, launch by launch, beside PyTorch where it is installed.

    python -m bench.gpu_models --models DIR [--names resnet50,…] [--precisions tf32,bf16] [--json FILE]

DIR holds the exports of `bench/README.md` (`resnet50.onnx`, …), at any batch size. A time is the median of 51 launches of the
model's graph by its events, with inputs and results on the GPU. PyTorch runs the same architecture, channels last, captured as a
CUDA graph and timed in the same way. An error is ‖difference‖ ÷ ‖result‖ from results in fp32 on this machine's processor.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graph.budget import RunBudget
from graph.cuda.contest import tune
from graph.cuda.engine import Cuda
from graph.cuda.gpu import shared_gpu
from graph.cuda.segment import LoweredSegment, Segment
from graph.formats.registry import read
from graph.ir import Model
from graph.passes.optimise import optimise
from graph.run.feeds import random_feeds
from graph.shapes import bind
from kernels.cuda.families.product_work import Precision
from kernels.spec import Array
from scheduler.session import Session

NAMES = ("resnet50", "mobilenet_v2", "vit_b_16", "bert_base_128", "efficientnet_b0")
REPEATS = 51


@dataclass
class Row:
    """One model in one precision. *_ns: of a replay as it is chosen unmeasured, and as the contest chose; of a run from the host.

    calls: node, kernel and nanoseconds of each launch by itself.
    """

    name: str
    precision: str
    untuned_ns: float
    tuned_ns: float = 0.0
    host_ns: float = 0.0
    tuning_s: float = 0.0
    error: float = 0.0
    launches: int = 0
    calls: list[tuple[str, str, float]] = field(default_factory=list)


def lowered_whole(model: Model, backend: Cuda) -> LoweredSegment:
    """Return a model as one segment. Raises ValueError, naming what was refused, where it is not one."""
    ready = optimise(model.graph, bind(model.graph, {}))
    rest, parts = backend.lowered(ready.graph, ready.specs, 1, {}, RunBudget())
    if len(rest.nodes) != 1:
        raise ValueError(f"{model.source}: {backend.refusals(ready.graph, ready.specs)}")
    (segment,) = parts.values()
    return segment


def run_once(segment: Segment, lowered: LoweredSegment, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    """Run a segment from the host and back. Returns its results, and the median of nanoseconds of ten runs."""
    outputs = {name: np.empty(place.view.shape, place.storage.dtype) for name, place in lowered.outputs.items()}
    taken = []
    for _ in range(10):
        began = time.perf_counter_ns()
        segment.run(np.zeros(0, np.uint8), [feeds[name] for name in lowered.inputs], list(outputs.values()), 1, np.zeros(1))
        taken.append(time.perf_counter_ns() - began)
    return outputs, statistics.median(taken)


def measure(name: str, model: Model, precision: Precision, feeds: Mapping[str, Array], most: int) -> tuple[Row, dict[str, Array]]:
    """Time a model. most: options of a launch that the contest tries; 0 for no contest."""
    backend = Cuda(precision, shared_gpu())
    lowered = lowered_whole(model, backend)
    segment = lowered.bind(backend.gpu)
    row = Row(name, precision, segment.time_ns(), launches=len(lowered.launches))
    outputs, row.host_ns = run_once(segment, lowered, feeds)
    if most:
        segment.close()
        began = time.perf_counter()
        tune(lowered, backend.gpu, most)
        row.tuning_s = time.perf_counter() - began
        segment = lowered.bind(backend.gpu)
        row.tuned_ns = segment.time_ns()
        outputs, row.host_ns = run_once(segment, lowered, feeds)
    calls = zip(lowered.calls, lowered.launches, segment.call_ns(), strict=True)
    row.calls = [(lowered.nodes[call.node].name, launch.kernel.name, ns) for call, launch, ns in calls]
    segment.close()
    return row, outputs


def difference(found: Array, expected: Array) -> float:
    """Return ‖difference‖ ÷ ‖expected‖."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


# PyTorch


def torch_model(name: str, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """Return the architecture of an export in PyTorch, with random weights, and a batch of inputs."""
    import torch  # type: ignore[import-not-found]

    torch.manual_seed(0)
    if name == "bert_base_128":
        from transformers import BertConfig, BertModel  # type: ignore[import-not-found]

        return BertModel(BertConfig()).eval(), (torch.randint(0, 30000, (batch, 128)), torch.ones(batch, 128, dtype=torch.long))
    import torchvision.models as zoo  # type: ignore[import-not-found]

    return getattr(zoo, name)(weights=None).eval(), (torch.randn(batch, 3, 224, 224),)


def time_torch(name: str, precision: str, batch: int) -> float:
    """Return the nanoseconds of a replay of PyTorch's graph."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    model, inputs = torch_model(name, batch)
    model = model.cuda().to(kind)
    if len(inputs) == 1:
        model = model.to(memory_format=torch.channels_last)
        inputs = (inputs[0].cuda().to(kind).to(memory_format=torch.channels_last),)
    else:
        inputs = tuple(each.cuda() for each in inputs)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(*inputs)
        found = []
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(REPEATS + 3):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1e6)
    return float(statistics.median(found[3:]))


def show(row: Row, torch_ns: float | None) -> None:
    """Print a row."""
    ours = row.tuned_ns or row.untuned_ns
    ratio = "" if torch_ns is None else f" torch {torch_ns / 1e3:8.1f} ratio {ours / torch_ns:.3f}"
    alone = sum(ns for _, _, ns in row.calls)
    print(
        f"{row.name:18} {row.precision:5} untuned {row.untuned_ns / 1e3:7.1f} tuned {row.tuned_ns / 1e3:7.1f} µs ({row.launches}"
        f" launches, alone {alone / 1e3:7.1f}; from the host {row.host_ns / 1e3:7.1f}; contest {row.tuning_s:.1f} s)"
        f"{ratio} error {row.error:.1e}",
        flush=True,
    )


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--precisions", default="tf32,bf16")
    parser.add_argument("--most", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = []
    for name in given.names.split(","):
        model = read(given.models / f"{name}.onnx")
        feeds = random_feeds(bind(model.graph, {}))
        batch = len(next(iter(feeds.values())))
        expected = Session(model).run(feeds)
        for precision in given.precisions.split(","):
            row, outputs = measure(name, model, precision, feeds, given.most)
            row.error = max(difference(outputs[key], expected[key]) for key in expected)
            rows.append(row)
            show(row, time_torch(name, precision, batch) if importlib.util.find_spec("torch") else None)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
