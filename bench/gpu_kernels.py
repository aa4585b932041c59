"""Kernels on an NVIDIA GPU beside products and convolutions, and PyTorch's where it is installed.

    python -m bench.gpu_kernels [--storages bf16,fp32] [--batches 1,32] [--only attention] [--json FILE]

Shapes are those of resnet50, mobilenet_v2, vit_b_16, bert-base and language models. A time is the median of five launches of a
graph of many calls, so it holds what starting a kernel in a graph takes, and data that fits stays in the L2 cache. Where a family
has candidates, all are timed. PyTorch's calls are captured and timed in the same way; images have channels last on both sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bench.gpu_products import Bench, time_torch_call
from kernels.cuda.driver import Driver
from kernels.cuda.families.attention_problem import Attention
from kernels.cuda.families.candidates import attention_candidates, candidates, row_candidates, window_candidates
from kernels.cuda.families.columns import Columns
from kernels.cuda.families.elementwise import Array, Map
from kernels.cuda.families.gather import Gather
from kernels.cuda.families.problem import Batch, Problem, Window
from kernels.cuda.families.rearrange import copy
from kernels.cuda.families.resize import Resize, table_of
from kernels.cuda.families.rows import RowOp, Rows
from kernels.cuda.families.sliding import Windows
from kernels.cuda.program import Launch
from kernels.expression import FLOAT, Apply, Expression
from kernels.resampling import Axis, resize_axis

UNCHANGED = Expression((FLOAT,))
ADD = Expression((FLOAT, FLOAT), (Apply("add", (0, 1)),))
GELU = Expression((FLOAT,), (Apply("gelu", (0,)),))
DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
Torch = Callable[[Any, Mapping[str, Any]], Callable[[], Any]]  # from torch and its arrays by name to a call


@dataclass(frozen=True)
class Given:
    """An array of a case. high: of indices, all below it; None for normally distributed numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    high: int | None = None

    @property
    def n_bytes(self) -> int:
        """Its bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def draw(self) -> np.ndarray[Any, Any]:
        """Return its elements."""
        rng = np.random.default_rng(0)
        if self.high is not None:
            return rng.integers(0, self.high, self.shape, self.dtype)
        return rng.standard_normal(self.shape, np.float32).astype(self.dtype)


@dataclass(frozen=True)
class Case:
    """What is timed. launches: candidates.  given: arrays by name, y among them.  moved: bytes read and written, each once."""

    family: str
    name: str
    launches: Sequence[Launch]
    given: Mapping[str, Given | np.ndarray[Any, Any]]
    torch: Torch
    moved: int
    flops: int = 0


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array whose elements lie side by side, in elements."""
    return tuple(int(np.prod(shape[d + 1 :])) for d in range(len(shape)))


def named(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of arrays as a launch takes them."""
    return {name: name for name in given}


def maps(storage: Any, batch: int) -> Iterator[Case]:
    """Elementwise maps of a transformer's hidden states."""
    shape, dtype = (batch * 197, 768), DTYPES[storage]
    rows, x = Array((768, 1), storage), Given((batch * 197, 768), DTYPES[storage])
    add = Map(ADD, shape, rows, (rows, rows)).launch(y="y", r0="x", r1="r")
    yield Case("map", f"add {shape}", [add], {"x": x, "r": x, "y": x}, lambda _, a: lambda: a["x"] + a["r"], 3 * x.n_bytes)
    row = Map(ADD, shape, rows, (rows, Array((0, 1), storage))).launch(y="y", r0="x", r1="r")
    given = {"x": x, "r": Given((768,), dtype), "y": x}
    yield Case("map", f"add a row {shape}", [row], given, lambda _, a: lambda: a["x"] + a["r"], 2 * x.n_bytes)
    gelu = Map(GELU, shape, rows, (rows,)).launch(y="y", r0="x")
    yield Case("map", f"gelu {shape}", [gelu], {"x": x, "y": x}, lambda t, a: lambda: t.nn.functional.gelu(a["x"]), 2 * x.n_bytes)
    other = "fp32" if storage != "fp32" else "bf16"
    cast = Map(UNCHANGED, shape, Array((768, 1), other), (rows,)).launch(y="y", r0="x")  # type: ignore[arg-type]
    y = Given(shape, DTYPES[other])
    yield Case(
        "map",
        f"cast to {other} {shape}",
        [cast],
        {"x": x, "y": y},
        lambda _, a: lambda: a["x"].to(a["y"].dtype),
        x.n_bytes + y.n_bytes,
    )


def transposes(storage: Any, batch: int) -> Iterator[Case]:
    """Orders of dimensions."""
    orders = {
        "nchw to nhwc": ((batch, 256, 56, 56), (0, 2, 3, 1)),
        "nhwc to nchw": ((batch, 56, 56, 256), (0, 3, 1, 2)),
        "3 channels last": ((batch, 3, 224, 224), (0, 2, 3, 1)),
        "heads": ((batch, 197, 12, 64), (0, 2, 1, 3)),
        "matrix": ((batch * 197, 768), (1, 0)),
    }
    for name, (shape, order) in orders.items():
        to = [shape[axis] for axis in order]
        steps = strides_of(to)
        y = Array(tuple(steps[order.index(axis)] for axis in range(len(shape))), storage)
        launch = copy(shape, Array(strides_of(shape), storage), y, x="x", y="y")
        given = {"x": Given(shape, DTYPES[storage]), "y": Given(tuple(to), DTYPES[storage])}

        def call(_: Any, a: Mapping[str, Any], order: tuple[int, ...] = order) -> Callable[[], Any]:
            return lambda: a["x"].permute(order).contiguous()

        yield Case("transpose", f"{name} {shape}", [launch], given, call, 2 * given["x"].n_bytes)


def rows(storage: Any, batch: int) -> Iterator[Case]:
    """Softmax and norms."""
    cases: list[tuple[RowOp, int, int]] = [
        ("softmax", batch * 12 * 197, 197),
        ("softmax", batch * 8, 50257),
        ("layer_norm", batch * 197, 768),
        ("rms_norm", batch * 128, 4096),
        ("mean", batch * 197, 768),
    ]
    for op, count, n in cases:
        problem, norm = Rows(count, n), op in ("layer_norm", "rms_norm")
        x, scale = Given((count, n), DTYPES[storage]), Given((n,), DTYPES["fp32"])
        y = Given((count,), DTYPES[storage]) if op == "mean" else x
        given = {"x": x, "y": y} | ({"scale": scale} if norm else {}) | ({"bias": scale} if op == "layer_norm" else {})
        form = problem.form(op, storage, scale=norm, bias=op == "layer_norm")
        launches = [problem.launch(each, **named(given)) for each in row_candidates(problem, form)]

        def call(t: Any, a: Mapping[str, Any], op: str = op, n: int = n) -> Callable[[], Any]:
            f, x = t.nn.functional, a["x"]
            if op == "layer_norm":
                scale, bias = a["scale"].to(x.dtype), a["bias"].to(x.dtype)
                return lambda: f.layer_norm(x, (n,), scale, bias)
            if op == "rms_norm":
                scale = a["scale"].to(x.dtype)
                return lambda: f.rms_norm(x, (n,), scale)
            return (lambda: f.softmax(x, -1)) if op == "softmax" else (lambda: x.mean(-1))

        yield Case("rows", f"{op} {count}×{n}", launches, given, call, x.n_bytes + y.n_bytes)


def images(storage: Any, batch: int) -> Iterator[Case]:
    """Global pools, pools, depthwise convolutions and resizing."""
    dtype = DTYPES[storage]
    for height, channels in ((7, 2048), (112, 32)):
        x, y = Given((batch, height, height, channels), dtype), Given((batch, channels), dtype)
        launch = Columns(batch, height * height, channels).launch("mean", storage, x="x", y="y")
        moved = x.n_bytes + y.n_bytes
        yield Case(
            "columns", f"mean {height}² {channels}", [launch], {"x": x, "y": y}, lambda _, a: lambda: a["x"].mean((1, 2)), moved
        )
    for op, height, channels, kernel, stride in (
        ("max_pool", 112, 64, 3, 2),
        ("average_pool", 56, 256, 2, 2),
        ("depthwise", 112, 96, 3, 2),
        ("depthwise", 56, 144, 3, 1),
        ("depthwise", 14, 384, 3, 1),
        ("depthwise", 14, 672, 5, 1),
    ):
        pad = 0 if kernel == 2 else kernel // 2
        window = Window(batch, height, height, channels, (kernel, kernel), (stride, stride), (pad,) * 4)
        given = {"x": Given((batch, height, height, channels), dtype), "y": Given((batch, *window.out, channels), dtype)}
        moved = given["x"].n_bytes + given["y"].n_bytes
        if op == "depthwise":
            given["w"] = Given((kernel, kernel, channels), dtype)
        windows = Windows(window)
        forms = window_candidates(windows.form(op, storage))  # type: ignore[arg-type]
        launches = [windows.launch(form, **named(given)) for form in forms]

        def pool(
            t: Any, a: Mapping[str, Any], op: str = op, kernel: int = kernel, stride: int = stride, pad: int = pad
        ) -> Callable[[], Any]:
            f, x = t.nn.functional, a["x"].permute(0, 3, 1, 2)
            if op == "depthwise":
                w = a["w"].permute(2, 0, 1).unsqueeze(1).contiguous(memory_format=t.channels_last)
                return lambda: f.conv2d(x, w, None, stride, pad, 1, x.shape[1])
            return lambda: (f.max_pool2d if op == "max_pool" else f.avg_pool2d)(x, kernel, stride, pad)

        yield Case("windows", f"{op} {kernel}×{kernel}/{stride} {height}² {channels}", launches, given, pool, moved)
    for mode in ("nearest", "linear"):
        yield resized(storage, batch, mode)


def resized(storage: Any, batch: int, mode: str) -> Case:
    """Twice the height and width."""
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
    }
    attributes |= {"cubic_coeff_a": -0.75, "antialias": 0, "exclude_outside": 0}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    along = [resize_axis(Axis(axis, 56, 112, (2, 1)), **attributes) for axis in range(2)]
    x, y = Given((batch, 56, 56, 256), DTYPES[storage]), Given((batch, 112, 112, 256), DTYPES[storage])
    given: dict[str, Any] = {"x": x, "y": y, "rows": table_of(along[0]), "columns": table_of(along[1])}
    launch = Resize(batch, (56, 56), 256, along[0], along[1]).launch(storage, **named(given))

    def call(t: Any, a: Mapping[str, Any]) -> Callable[[], Any]:
        image = a["x"].permute(0, 3, 1, 2)
        return lambda: t.nn.functional.interpolate(image, scale_factor=2, mode="nearest" if mode == "nearest" else "bilinear")

    return Case("resize", f"{mode} 56² to 112² 256", [launch], given, call, x.n_bytes + y.n_bytes)


def embeddings(storage: Any, batch: int) -> Iterator[Case]:
    """Rows of a table of words."""
    gather, dtype = Gather(30522, batch * 128, 768), DTYPES[storage]
    given = {"x": Given((30522, 768), dtype), "index": Given((batch * 128,), np.dtype(np.int64), 30522)}
    given |= {"y": Given((batch * 128, 768), dtype), "watch": Given((1,), np.dtype(np.int32), 1)}
    launch = gather.launch(storage, **named(given))

    def call(t: Any, a: Mapping[str, Any]) -> Callable[[], Any]:
        return lambda: t.nn.functional.embedding(a["index"], a["x"])

    yield Case("gather", f"embedding {batch * 128}×768 of 30522", [launch], given, call, 2 * given["y"].n_bytes)


def attentions(precision: Any, batch: int, device: Any) -> Iterator[Case]:
    """Attention of vit_b_16, bert-base, vit_h_14 and language models."""
    storage = "fp32" if precision == "tf32" else precision
    sizes = ((12, 197, 64, False), (12, 128, 64, False), (16, 257, 80, False), (16, 1024, 64, True), (32, 2048, 128, True))
    for heads, tokens, depth, causal in sizes:
        if batch > 4 and tokens > 1000:
            batch = 4
        attention = Attention.dense(batch, heads, tokens, tokens, depth)
        x = Given((batch, tokens, heads, depth), DTYPES[storage])
        given = dict.fromkeys(("q", "k", "v", "y"), x)
        forms = attention_candidates(precision, attention, device, causal=causal)
        launches = [attention.launch(form, q="q", k="k", v="v", y="y") for form in forms]

        def call(t: Any, a: Mapping[str, Any], causal: bool = causal) -> Callable[[], Any]:
            q, k, v = (a[name].transpose(1, 2) for name in "qkv")
            return lambda: t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        flops = attention.flops // (2 if causal else 1)
        name = f"{precision} {batch}×{heads} heads of {depth}, {tokens} tokens{', causal' * causal}"
        yield Case("attention", name, launches, given, call, 4 * x.n_bytes, flops)


def batches(precision: Any, batch: int, device: Any) -> Iterator[Case]:
    """Scores as products of two tensors."""
    storage, tokens = "fp32" if precision == "tf32" else precision, 197
    steps, out = (tokens * 768, 64), (12 * tokens * tokens, tokens * tokens)
    problem = Problem(tokens, tokens, 64, x_stride=768, w_stride=768, batch=Batch(batch, 12, steps, steps, out))
    cuts = [cut for cut in candidates(precision, problem, device) if cut.slices == 1]
    x, y = Given((batch, tokens, 12, 64), DTYPES[storage]), Given((batch, 12, tokens, tokens), DTYPES[storage])

    def call(t: Any, a: Mapping[str, Any]) -> Callable[[], Any]:
        left, right = a["x"].permute(0, 2, 1, 3), a["w"].permute(0, 2, 3, 1)
        return lambda: t.matmul(left, right)

    launches = [cut.launch(x="x", w="w", y="y") for cut in cuts]
    name = f"{precision} {batch * 12} of 197×64×197"
    yield Case("product", name, launches, {"x": x, "w": x, "y": y}, call, 2 * x.n_bytes + y.n_bytes, problem.flops)


def all_cases(storages: Sequence[str], batch: int, device: Any) -> Iterator[Case]:
    """Yield every case."""
    for storage in storages:
        for family in (maps, transposes, rows, images, embeddings):
            yield from family(storage, batch)
        for precision in ("tf32", "fp32") if storage == "fp32" else (storage,):
            yield from attentions(precision, batch, device)
            yield from batches(precision, batch, device)


def measure(bench: Bench, case: Case) -> dict[str, Any]:
    """Time a case's candidates and PyTorch."""
    calls = 5 if case.moved > 1 << 28 or case.flops > 2e10 else 20
    arrays = {name: given.draw() if isinstance(given, Given) else given for name, given in case.given.items()}
    memory = {name: bench.context.allocate(array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        memory[name].write(array)
    runs = [(bench.time_launch(launch, memory, calls), launch.kernel.name) for launch in case.launches]
    torch_ns = None
    if importlib.util.find_spec("torch") is not None:
        torch_ns = time_peer(case, arrays, calls)
    for each in memory.values():
        each.close()
    best = min(runs)
    return {
        "family": case.family,
        "name": case.name,
        "ns": best[0],
        "kernel": best[1],
        "moved": case.moved,
        "flops": case.flops,
        "torch_ns": torch_ns,
        "all": sorted(runs),
    }


def time_peer(case: Case, arrays: Mapping[str, Any], calls: int) -> float:
    """Return the nanoseconds of PyTorch's call."""
    import torch  # type: ignore[import-not-found]

    tf32 = "tf32" in case.name
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True

    def tensor(array: Any) -> Any:
        if array.dtype == DTYPES["bf16"]:
            return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
        return torch.from_numpy(array).cuda()

    given = {name: tensor(array) for name, array in arrays.items()}
    return time_torch_call(case.torch(torch, given), calls)


def main() -> None:
    """Print a table, and write it as JSON where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storages", default="bf16,fp32")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--only", default="", help="a family's name")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows_of_table = []
    device = Driver().device()
    print("| batch | storage | family | shape | µs | GB/s | TFLOP/s | PyTorch µs | ratio | kernel |")
    print("|---" * 10 + "|")
    with device.open() as context:
        bench = Bench(context)
        for batch in map(int, options.batches.split(",")):
            for storage in options.storages.split(","):
                for case in all_cases([storage], batch, device):
                    if options.only not in case.family:
                        continue
                    row = measure(bench, case) | {"batch": batch, "storage": storage}
                    rows_of_table.append(row)
                    speeds = f"{row['ns'] / 1e3:.2f} | {row['moved'] / row['ns']:.0f} | {row['flops'] / row['ns'] / 1e3:.1f}"
                    peer = (
                        " | " if row["torch_ns"] is None else f"{row['torch_ns'] / 1e3:.2f} | {row['torch_ns'] / row['ns']:.2f}"
                    )
                    print(
                        f"| {batch} | {storage} | {case.family} | {case.name} | {speeds} | {peer} | {row['kernel']} |", flush=True
                    )
    if options.json:
        options.json.write_text(json.dumps({"device": device.name, "python": sys.version, "rows": rows_of_table}, indent=1))


if __name__ == "__main__":
    main()
