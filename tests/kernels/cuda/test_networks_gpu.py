"""Blocks of networks as programs of launches, recorded and replayed on a GPU, against numpy in float64."""

from math import erf
from typing import Any

import numpy as np
import pytest

from kernels.cuda.emit.epilogue import UNCHANGED
from kernels.cuda.families.attention import AttentionForm
from kernels.cuda.families.attention_problem import Attention
from kernels.cuda.families.columns import Columns
from kernels.cuda.families.elementwise import Array, Map
from kernels.cuda.families.gather import Gather
from kernels.cuda.families.problem import Batch, Cut, Problem, Window
from kernels.cuda.families.rearrange import copy
from kernels.cuda.families.resize import Resize, table_of
from kernels.cuda.families.rows import Rows
from kernels.cuda.families.sliding import Windows
from kernels.cuda.program import Program, Replay
from kernels.resampling import Axis, resize_axis
from tests.kernels.cuda.conftest import Gpu
from tests.kernels.cuda.families.cases import DTYPES, poison
from tests.kernels.cuda.families.product_cases import ADD, ADD_RELU, CLIP, GELU, RELU, SMALL, form_for, patches

pytestmark = pytest.mark.gpu
PRECISIONS: dict[Any, tuple[Any, float]] = {
    "fp32": ("fp32", 1e-5),
    "tf32": ("fp32", 5e-3),
    "fp16": ("fp16", 5e-3),
    "bf16": ("bf16", 4e-2),
}
EPSILON = 1e-5


class Network:
    """Launches under construction, with each value's truth in float64 beside it."""

    def __init__(self, gpu: Gpu, precision: Any) -> None:
        self.gpu, self.precision, self.storage = gpu, precision, PRECISIONS[precision][0]
        self.launches: list = []
        self.memory: dict = {}
        self.truth: dict = {}
        self.parts: dict = {}  # names of a part of another value's memory: that value, and bytes from its beginning
        self.rng = np.random.default_rng(0)

    def given(self, name, array):
        self.memory[name], self.truth[name] = self.gpu.upload(array), array.astype(np.float64)
        return name

    def weight(self, name, *shape, storage=None, fan=None):
        scale = (fan or 1) ** -0.5
        return self.given(
            name, (self.rng.standard_normal(shape) * scale).astype(np.float32).astype(DTYPES[storage or self.storage])
        )

    def value(self, name, truth, storage=None):
        self.memory[name] = self.gpu.upload(poison(truth.shape, storage or self.storage))
        self.truth[name] = truth
        return name

    def product(self, x, w, y, truth, problem, *, bias=None, other=None, expression=UNCHANGED):
        slices = 2 if problem.k > 200 else 1
        cut = Cut.into(form_for(self.precision, SMALL, problem, bias=bias is not None, expression=expression), problem, slices)
        names = {"x": x, "w": w, "y": self.value(y, truth)}
        names |= {"bias": bias} if bias else {}
        names |= {"r0": other} if other else {}
        if cut.slices > 1:
            for name, size in (("partial", cut.partial_bytes), ("counters", cut.counter_bytes)):
                self.memory[f"{y}.{name}"] = self.gpu.upload(np.zeros(size, np.uint8))
                names[name] = f"{y}.{name}"
        self.launches.append(cut.launch(**names))
        return y

    def convolution(self, x, y, out, kernel=1, stride=1, *, other=None):
        batch, height, width, channels = self.truth[x].shape
        window = Window(batch, height, width, channels, (kernel, kernel), (stride, stride), (kernel // 2,) * 4)
        w = self.weight(f"{y}.w", out, kernel, kernel, channels, fan=kernel * kernel * channels)
        bias = self.weight(f"{y}.b", out, storage="fp32")
        truth = patches(self.truth[x], window) @ self.truth[w].reshape(out, -1).T + self.truth[bias]
        truth = truth.reshape(batch, *window.out, out) + (self.truth[other] if other else 0)
        problem = Problem.convolution(window, out, others=(out,) if other else ())
        expression = ADD_RELU if other else RELU
        return self.product(x, w, y, np.maximum(truth, 0), problem, bias=bias, other=other, expression=expression)

    def linear(self, x, y, out, *, other=None, expression=UNCHANGED, function=lambda a: a):
        rows = int(np.prod(self.truth[x].shape[:-1]))
        depth = self.truth[x].shape[-1]
        w, bias = self.weight(f"{y}.w", out, depth, fan=depth), self.weight(f"{y}.b", out, storage="fp32")
        truth = function(self.truth[x] @ self.truth[w].T + self.truth[bias] + (self.truth[other] if other else 0))
        problem = Problem(rows, out, depth, others=(out,) if other else ())
        return self.product(x, w, y, truth, problem, bias=bias, other=other, expression=ADD if other else expression)

    def norm(self, op, x, y):
        n = self.truth[x].shape[-1]
        scale = self.weight(f"{y}.scale", n, storage="fp32")
        names, bias = {"x": x, "scale": scale}, None
        values = self.truth[x]
        if op == "layer_norm":
            bias = names["bias"] = self.weight(f"{y}.bias", n, storage="fp32")
            values = values - values.mean(-1, keepdims=True)
        truth = values / np.sqrt(np.square(values).mean(-1, keepdims=True) + EPSILON) * self.truth[scale]
        rows = Rows(truth.size // n, n)
        form = rows.form(op, self.storage, scale=True, bias=bias is not None)
        names["y"] = self.value(y, truth + (self.truth[bias] if bias else 0))
        self.launches.append(rows.launch(form, epsilon=EPSILON, **names))
        return y

    def softmax(self, x, y):
        shifted = self.truth[x] - self.truth[x].max(-1, keepdims=True)
        truth = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
        rows = Rows(truth.size // truth.shape[-1], truth.shape[-1])
        form = rows.form("softmax", self.storage, "fp32")
        self.launches.append(rows.launch(form, x=x, y=self.value(y, truth, "fp32")))
        return y

    def addresses(self):
        return self.memory | {name: self.memory[of].address + at for name, (of, at) in self.parts.items()}

    def check(self, y, storage, limit):
        found = self.memory[y].read(np.empty(self.truth[y].shape, DTYPES[storage])).astype(np.float64)
        truth = self.truth[y]
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        assert error < limit, f"{y}: relative error {error:.2e}"

    def run(self, outputs):
        """Replay the program three times, the last on copies of all its memory, and check its outputs each time."""
        gpu, program = self.gpu, Program(tuple(self.launches))
        limit = PRECISIONS[self.precision][1]
        with Replay(gpu.kernels, program, self.addresses(), gpu.stream) as replay:
            for turn in range(3):
                if turn == 2:
                    copies = {name: gpu.context.allocate(memory.n_bytes) for name, memory in self.memory.items()}
                    for name, memory in copies.items():
                        memory.copy_from(self.memory[name])
                    self.memory = copies
                    replay.rebind(self.addresses())
                for y, storage in outputs.items():
                    self.memory[y].write(poison(self.truth[y].shape, storage))
                replay.launch(gpu.stream)
                gpu.stream.synchronize()
                for y, storage in outputs.items():
                    self.check(y, storage, limit)


def images_last(net, image, y, room):
    """Copy float32 images with channels first to images with `room` channels, the last ones 0."""
    batch, channels, height, width = net.truth[image].shape
    truth = np.zeros((batch, height, width, room))
    truth[..., :channels] = net.truth[image].transpose(0, 2, 3, 1)
    net.given(y, np.zeros(truth.shape, DTYPES[net.storage]))
    net.truth[y] = truth
    plane, pixels = height * width, Array((height * width * room, 1, width * room, room), net.storage)
    net.launches.append(copy((batch, channels, height, width), Array((channels * plane, plane, width, 1)), pixels, x=image, y=y))
    return y


def pooled(net, x, y):
    batch, height, width, channels = net.truth[x].shape
    window = Window(batch, height, width, channels, (3, 3), (2, 2), (1, 1, 1, 1))
    whole = np.pad(net.truth[x], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    inner = Window(batch, height + 2, width + 2, channels, (3, 3), (2, 2))
    truth = patches(whole, inner).reshape(batch, *window.out, 9, channels).max(3)
    windows = Windows(window)
    net.launches.append(windows.launch(windows.form("max_pool", net.storage), x=x, y=net.value(y, truth)))
    return y


def depthwise(net, x, y):
    batch, height, width, channels = net.truth[x].shape
    window = Window(batch, height, width, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    w, bias = net.weight(f"{y}.w", 3, 3, channels, fan=9), net.weight(f"{y}.b", channels, storage="fp32")
    terms = patches(net.truth[x], window).reshape(-1, 9, channels) * net.truth[w].reshape(9, channels)
    truth = np.clip(terms.sum(1) + net.truth[bias], 0, 6).reshape(net.truth[x].shape)
    windows = Windows(window)
    form = windows.form("depthwise", net.storage, bias=True, expression=CLIP)
    net.launches.append(windows.launch(form, x=x, w=w, bias=bias, y=net.value(y, truth)))
    return y


def enlarged(net, x, y):
    batch, height, width, channels = net.truth[x].shape
    attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor"}
    attributes |= {"cubic_coeff_a": -0.75, "antialias": 0, "exclude_outside": 0}
    passes = [resize_axis(Axis(axis, n, 2 * n, (2, 1)), **attributes) for axis, n in enumerate((height, width))]
    truth = net.truth[x]
    for axis, along in enumerate(passes, 1):
        taken = np.take(truth, along.index, axis)  # (…, out, taps, …)
        shape = [1] * taken.ndim
        shape[axis : axis + 2] = along.weights.shape
        truth = (taken * along.weights.reshape(shape)).sum(axis + 1)
    for name, along in zip(("rows", "columns"), passes, strict=True):
        net.memory[f"{y}.{name}"] = net.gpu.upload(table_of(along))
    resize = Resize(batch, (height, width), channels, passes[0], passes[1])
    net.launches.append(resize.launch(net.storage, x=x, y=net.value(y, truth), rows=f"{y}.rows", columns=f"{y}.columns"))
    return y


@pytest.mark.parametrize("precision", PRECISIONS)
def test_residual_network(gpu, precision):
    net = Network(gpu, precision)
    image = net.given("image", np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32))
    x = images_last(net, image, "pixels", 4)
    x = net.convolution(x, "stem", 64, 7, 2)
    x = pooled(net, x, "pooled")
    wide = net.convolution(x, "wide", 128)
    for block in range(2):
        inner = net.convolution(wide, f"reduce{block}", 32)
        inner = net.convolution(inner, f"conv{block}", 32, 3)
        wide = net.convolution(inner, f"expand{block}", 128, other=wide)
    spread = depthwise(net, wide, "depthwise")
    large = enlarged(net, spread, "enlarged")
    batch, height, width, channels = net.truth[large].shape
    mean = net.value("mean", net.truth[large].mean((1, 2)))
    net.launches.append(Columns(batch, height * width, channels).launch("mean", net.storage, x=large, y=mean))
    scores = net.linear(mean, "scores", 10)
    net.run({"enlarged": net.storage, scores: net.storage, net.softmax(scores, "weights"): "fp32"})


def attended(net, x, y, heads, causal):
    """Attention of queries, keys and values that one product has put side by side."""
    batch, tokens, width = net.truth[x].shape
    depth = width // heads
    packed = net.linear(x, f"{y}.qkv", 3 * width)
    q, k, v = (part.reshape(batch, tokens, heads, depth) for part in np.split(net.truth[packed], 3, -1))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(depth)
    if causal:
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    truth = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v).reshape(batch, tokens, width)
    steps = (tokens * 3 * width, depth, 3 * width)
    attention = Attention(
        batch, heads, heads, tokens, tokens, depth, steps, steps, steps, (tokens * width, depth, width), depth**-0.5
    )
    parts = [f"{y}.{name}" for name in "qkv"]
    for n, name in enumerate(parts):
        net.parts[name] = packed, n * width * DTYPES[net.storage].itemsize
    form = AttentionForm(net.precision, depth, causal=causal)
    net.launches.append(attention.launch(form, q=parts[0], k=parts[1], v=parts[2], y=net.value(y, truth)))
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_transformer(gpu, precision, causal):
    net, batch, tokens, width, words = Network(gpu, precision), 2, 50, 128, 300
    table, positions = net.weight("table", words, width), net.weight("positions", tokens, width)
    ids = np.random.default_rng(1).integers(0, words, (batch, tokens))
    net.given("ids", ids)
    net.given("watch", np.zeros(1, np.int32))
    embedded = net.value("embedded", net.truth[table][ids])
    gather = Gather(words, batch * tokens, width)
    net.launches.append(gather.launch(net.storage, x=table, index="ids", y=embedded, watch="watch"))
    x = net.value("placed", net.truth[embedded] + net.truth[positions])
    rows = Array((tokens * width, width, 1), net.storage)
    place = Map(ADD, (batch, tokens, width), rows, (rows, Array((0, width, 1), net.storage)))
    net.launches.append(place.launch(y=x, r0=embedded, r1=positions))
    for layer in range(2):
        normed = net.norm("layer_norm", x, f"norm{layer}")
        mixed = attended(net, normed, f"mixed{layer}", 4, causal)
        x = net.linear(mixed, f"joined{layer}", width, other=x)
        normed = net.norm("layer_norm", x, f"second{layer}")
        hidden = net.linear(
            normed,
            f"hidden{layer}",
            4 * width,
            expression=GELU,
            function=lambda a: a * 0.5 * (1 + np.vectorize(erf)(a / np.sqrt(2))),
        )
        x = net.linear(hidden, f"out{layer}", width, other=x)
    x = net.norm("rms_norm", x, "last")
    net.run({x: net.storage, net.softmax(net.linear(x, "scores", 77), "weights"): "fp32"})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_step_by_step(gpu, precision):
    """The scores as products of two tensors, softmax, and products with values turned by a copy."""
    net, batch, heads, tokens, depth = Network(gpu, precision), 2, 3, 40, 64
    q, k, v = (net.weight(name, batch, tokens, heads, depth, fan=depth if name == "q" else 1) for name in "qkv")
    token = heads * depth
    steps = (tokens * token, depth)
    scores = np.einsum("bqhd,bkhd->bhqk", net.truth[q], net.truth[k])
    products = Batch(batch, heads, steps, steps, (heads * tokens * tokens, tokens * tokens))
    problem = Problem(tokens, tokens, depth, x_stride=token, w_stride=token, batch=products)
    net.product(q, k, "scores", scores, problem)
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    rows = Rows(batch * heads * tokens, tokens)
    weights = net.value("weights", shifted / shifted.sum(-1, keepdims=True))
    net.launches.append(rows.launch(rows.form("softmax", net.storage), x="scores", y=weights))
    turned = net.value("turned", net.truth[v].transpose(0, 2, 3, 1))
    shape = (batch, heads, depth, tokens)
    places = Array((heads * depth * tokens, depth * tokens, tokens, 1), net.storage)
    net.launches.append(copy(shape, Array((tokens * token, depth, 1, token), net.storage), places, x=v, y=turned))
    truth = np.einsum("bhqk,bkhd->bqhd", net.truth[weights], net.truth[v])
    products = Batch(
        batch,
        heads,
        (heads * tokens * tokens, tokens * tokens),
        (heads * depth * tokens, depth * tokens),
        (tokens * token, depth),
    )
    net.product(weights, turned, "y", truth, Problem(tokens, depth, tokens, y_stride=token, batch=products))
    net.run({"turned": net.storage, "y": net.storage})
