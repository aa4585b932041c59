"""Compiling the kernels of common networks ahead, so that the first model of a machine finds most of its code on disk.

Code is decided by operators, types, layouts, tiles and epilogues, not by sizes, so a few networks of the usual kinds stand for
many. They exist as graphs alone: their weights are one number that is never packed or read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from graph.ir import Graph, Node, Port
from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.native.code.cache import Source
from kernels.native.code.farm import compile_all
from kernels.registry import find
from kernels.spec import Array

IMAGE = 224
PROGRESS_KERNELS = 16  # compiled between two calls of the progress function

Progress = Callable[[int, int], None]  # kernels that are ready, of how many


@dataclass(slots=True)
class _Net:
    """A network under construction, whose values are named by numbers. Operators with weights add their own."""

    name: str
    shape: tuple[int, ...]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def op(self, op: str, *inputs: str, **attrs: object) -> str:
        """Append a node and return the name of its output."""
        value = f"v{len(self.nodes)}"
        self.nodes.append(Node(value, op, inputs, (value,), find(op).bind(attrs)))
        return value

    def constant(self, array: Array) -> str:
        """Add a constant and return its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weight(self, *shape: int) -> str:
        """Add weights that take no memory and differ from those of other layers."""
        return self.constant(np.broadcast_to(np.float32(0.01 + 0.001 * len(self.constants)), shape))

    def conv(self, x: str, channels: tuple[int, int], size: int, stride: int = 1, group: int = 1) -> str:
        """Append a convolution with bias and a padding that keeps the size. channels: read and written."""
        weights, bias = self.weight(channels[1], channels[0] // group, size, size), self.weight(channels[1])
        return self.op("Conv", x, weights, bias, pads=[size // 2] * 4, strides=[stride] * 2, group=group)

    def product(self, x: str, inner: int, columns: int) -> str:
        """Append a product with weights, and a bias."""
        return self.op("Add", self.op("MatMul", x, self.weight(inner, columns)), self.weight(columns))

    def reshape(self, x: str, *shape: int) -> str:
        """Append a reshape."""
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def head(self, x: str, channels: int) -> None:
        """Append global pooling and a classifier."""
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        self.op("Gemm", pooled, self.weight(1000, channels), self.weight(1000), transB=1)

    @property
    def graph(self) -> Graph:
        """The network; its output is that of the last node."""
        dtype = np.dtype(np.float32)
        output = Port(self.nodes[-1].outputs[0], dtype, None)
        return Graph(self.name, (Port("x", dtype, self.shape),), (output,), tuple(self.nodes), self.constants)


def _residual(name: str, blocks: Sequence[int], *, narrow: bool) -> _Net:
    """Return a residual network of images. blocks: of each stage. narrow: 1×1, 3×3 and 1×1 convolutions; else two of 3×3."""
    net = _Net(name, (1, 3, IMAGE, IMAGE))
    x = net.op("Relu", net.conv("x", (3, 64), 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide, before = 4 if narrow else 1, 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            if narrow:
                y = net.op("Relu", net.conv(x, (before, inner), 1))
                y = net.conv(net.op("Relu", net.conv(y, (inner, inner), 3, stride)), (inner, 4 * inner), 1)
            else:
                y = net.conv(net.op("Relu", net.conv(x, (before, inner), 3, stride)), (inner, inner), 3)
            short = x if before == wide * inner and stride == 1 else net.conv(x, (before, wide * inner), 1, stride)
            x, before = net.op("Relu", net.op("Add", y, short)), wide * inner
    net.head(x, before)
    return net


def _mobile(name: str, activation: str, *, gates: bool) -> _Net:
    """Return a network of inverted residuals.

    activation: Clip, or an operator of one input. gates: channels are weighed by what their means say.
    """
    net = _Net(name, (1, 3, IMAGE, IMAGE))

    def act(x: str) -> str:
        if activation == "Clip":
            return net.op("Clip", x, *(net.constant(np.array(bound, np.float32)) for bound in (0, 6)))
        return net.op(activation, x)

    x = act(net.conv("x", (3, 32), 3, 2))
    widths = (32, 16, 24, 24, 40, 40, 80, 80, 112, 112, 192, 192, 320)
    for number, (before, after) in enumerate(pairwise(widths)):
        inner, stride = 6 * before if number else before, 2 if number in (1, 3, 5, 9) else 1
        y = act(net.conv(x, (before, inner), 1)) if number else x
        y = act(net.conv(y, (inner, inner), 5 if gates and number % 4 > 1 else 3, stride, inner))
        if gates:
            gate = act(net.conv(net.op("GlobalAveragePool", y), (inner, before // 4), 1))
            y = net.op("Mul", y, net.op("Sigmoid", net.conv(gate, (before // 4, inner), 1)))
        y = net.conv(y, (inner, after), 1)
        x = net.op("Add", y, x) if before == after and stride == 1 else y
    net.head(act(net.conv(x, (320, 1280), 1)), 1280)
    return net


def _plain(name: str) -> _Net:
    """Return a network of 3×3 convolutions and pools, with a classifier of three products."""
    net = _Net(name, (1, 3, IMAGE, IMAGE))
    x, before = "x", 3
    for channels in (64, 128, 256, 512, 512):
        for _ in range(2):
            x, before = net.op("Relu", net.conv(x, (before, channels), 3)), channels
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", x)
    for inner, columns in ((25088, 4096), (4096, 4096)):
        x = net.op("Relu", net.op("Gemm", x, net.weight(columns, inner), net.weight(columns), transB=1))
    net.op("Gemm", x, net.weight(1000, 4096), net.weight(1000), transB=1)
    return net


def _encoder(name: str, length: int, width: int, heads: int, epsilon: float, *, patches: bool) -> _Net:
    """Return two layers of a transformer's encoder: norm, attention and perceptron with residuals.

    patches: its rows are patches of an image and a class token.
    """
    net = _Net(name, (1, 3, IMAGE, IMAGE) if patches else (1, length, width))
    x, size = "x", width // heads
    if patches:
        side = IMAGE // 14
        x = net.op("Conv", x, net.weight(width, 3, side, side), net.weight(width), strides=[side, side])
        x = net.op("Transpose", net.reshape(x, 1, width, length - 1), perm=[0, 2, 1])
        x = net.op("Add", net.op("Concat", net.weight(1, 1, width), x, axis=1), net.weight(1, length, width))
    for _ in range(2):
        normed = net.op("LayerNormalization", x, net.weight(width), net.weight(width), axis=-1, epsilon=epsilon)
        apart = [net.reshape(net.product(normed, width, width), 1, length, heads, size) for _ in range(3)]
        q, k, v = (
            net.op("Transpose", part, perm=[0, 2, *last]) for part, last in zip(apart, ([1, 3], [3, 1], [1, 3]), strict=True)
        )
        scores = net.op("Mul", net.op("MatMul", q, k), net.constant(np.array(size**-0.5, np.float32)))
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        x = net.op("Add", x, net.product(net.reshape(mixed, 1, length, width), width, width))
        normed = net.op("LayerNormalization", x, net.weight(width), net.weight(width), axis=-1, epsilon=epsilon)
        x = net.op("Add", x, net.product(net.op("Gelu", net.product(normed, width, 4 * width)), 4 * width, width))
    return net


def common_graphs() -> Iterator[Graph]:
    """Yield networks of the usual kinds, with the sizes that such networks have."""
    yield _residual("residual", (2, 2, 2, 2), narrow=False).graph
    yield _residual("bottleneck", (2, 2, 2, 2), narrow=True).graph
    yield _mobile("mobile", "Clip", gates=False).graph
    yield _mobile("mobile-hardswish", "HardSwish", gates=True).graph
    yield _mobile("mobile-swish", "Swish", gates=True).graph
    yield _plain("plain").graph
    yield _encoder("text-encoder", 128, 768, 12, 1e-12, patches=False).graph
    yield _encoder("text-encoder-5", 128, 768, 12, 1e-5, patches=False).graph
    for width, heads in ((768, 12), (384, 6), (192, 3)):
        yield _encoder(f"image-encoder-{width}", 197, width, heads, 1e-6, patches=True).graph


def common_kernels(native: Native, threads: int) -> dict[str, Source]:
    """Return the kernels that programs of the common networks call, by their names."""
    found: dict[str, Source] = {}
    for graph in common_graphs():
        ready = optimise(graph, bind(graph))
        for kernels in native.kernels(ready.graph, ready.specs, threads, {}).values():
            found.update((kernel.name, kernel.source) for kernel in kernels)
    return found


def warm(native: Native, threads: int, progress: Progress) -> int:
    """Compile the kernels of the common networks into the code cache; those that are there already cost nothing.

    Returns: the number of kernels. Raises: CompileError.
    """
    kernels = common_kernels(native, threads)
    ready = 0
    sources = list(kernels.values())
    for start in range(0, len(sources), PROGRESS_KERNELS):
        some = sources[start : start + PROGRESS_KERNELS]
        compile_all(some, native.isa, cache=native.cache)
        progress(ready := ready + len(some), len(kernels))
    return ready
