"""Build well-known networks, whose costs are published integers. Their weights take no memory.

`Net` builds the intermediate representation layer by layer. A BatchNormalization is either a node (`folded=False`) or folded
into the convolution as PyTorch's exporter does it: into a weight and a bias named `onnx::Conv_<n>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graph.digest import Digest
from graph.ir import Graph, Model, Node, Port
from kernels.registry import find
from kernels.spec import Array


class Net:
    """A graph under construction. Methods take and return names of values.

    channels: size of axis 1 of each value; in transformers, of the last axis.
    """

    def __init__(self, name: str, *inputs: tuple[str, tuple[int | str, ...], Any], folded: bool = True) -> None:
        self.name, self.folded = name, folded
        self.inputs = tuple(Port(port, np.dtype(dtype), dims) for port, dims, dtype in inputs)
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.initializers: set[str] = set()
        self.channels: dict[str, int] = {port: int(dims[1]) for port, dims, _ in inputs if len(dims) > 1}

    def op(self, op: str, *inputs: str, channels: int | None = None, **attrs: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        bound = find(op).bind(attrs)
        self.nodes.append(Node(name, op, inputs, (f"{name}_out",), bound, origins=(name,)))
        self.channels[f"{name}_out"] = self.channels.get(inputs[0], 0) if channels is None else channels
        return f"{name}_out"

    def weight(self, *shape: int, name: str | None = None) -> str:
        name = name or f"layer{len(self.constants)}.weight"
        self.constants[name] = np.broadcast_to(np.float32(0), shape)
        self.initializers.add(name)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def model(self, *outputs: str) -> Model:
        ports = tuple(Port(name, np.dtype(np.float32), None) for name in outputs)
        graph = Graph(self.name, self.inputs, ports, tuple(self.nodes), self.constants)
        return Model(graph, Digest.known("0" * 64), 17, "pytorch", self.name, 0, frozenset(self.initializers))

    def conv(
        self, x: str, k: int, size: int | tuple[int, int], stride: int = 1, *, pad: Any = None, groups: int = 1, norm: bool = True
    ) -> str:
        """Add a convolution of k channels, with a batch norm after it, or else with a bias."""
        r, s = (size, size) if isinstance(size, int) else size
        pr, ps = (r // 2, s // 2) if pad is None else (pad, pad) if isinstance(pad, int) else pad
        attrs = {"kernel_shape": [r, s], "strides": [stride, stride], "pads": [pr, ps, pr, ps], "group": groups}
        shape = (k, self.channels[x] // groups, r, s)
        if norm and not self.folded:
            return self.norm(self.op("Conv", x, self.weight(*shape), channels=k, **attrs))
        number = len(self.constants)
        names = (f"onnx::Conv_{number}", f"onnx::Conv_{number + 1}") if norm else (None, None)
        return self.op("Conv", x, self.weight(*shape, name=names[0]), self.weight(k, name=names[1]), channels=k, **attrs)

    def norm(self, x: str) -> str:
        return self.op("BatchNormalization", x, *(self.weight(self.channels[x]) for _ in range(4)))

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.constant(0, np.float32), self.constant(6, np.float32))

    def swish(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def max_pool(self, x: str, size: int, stride: int, pad: int = 0, ceil: int = 0) -> str:
        return self.op("MaxPool", x, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4, ceil_mode=ceil)

    def avg_pool(self, x: str, size: int, stride: int, pad: int = 0) -> str:
        return self.op("AveragePool", x, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4)

    def concat(self, *xs: str) -> str:
        return self.op("Concat", *xs, axis=1, channels=sum(self.channels[x] for x in xs))

    def fully_connected(self, x: str, features: int) -> str:
        return self.op("Gemm", x, self.weight(features, self.channels[x]), self.weight(features), transB=1, channels=features)

    def classifier(self, x: str, features: int) -> str:
        return self.fully_connected(self.op("Flatten", self.op("GlobalAveragePool", x)), features)

    def linear(self, x: str, features: int) -> str:
        product = self.op("MatMul", x, self.weight(self.channels[x], features), channels=features)
        return self.op("Add", self.weight(features), product, channels=features)

    def layer_norm(self, x: str) -> str:
        width = self.channels[x]
        return self.op("LayerNormalization", x, self.weight(width), self.weight(width))


def image(batch: int | str = 1, size: int = 224) -> tuple[str, tuple[int | str, ...], Any]:
    return ("x", (batch, 3, size, size), np.float32)


def mobilenet_v1(batch: int | str = 1, size: int = 224, *, folded: bool = True) -> Model:
    net = Net("mobilenet_v1", image(batch, size), folded=folded)
    x = net.relu6(net.conv("x", 32, 3, 2))
    layers = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    for k, stride in layers:
        x = net.relu6(net.conv(x, net.channels[x], 3, stride, groups=net.channels[x]))
        x = net.relu6(net.conv(x, k, 1))
    return net.model(net.classifier(x, 1001))


def mobilenet_v2(batch: int | str = 1, *, folded: bool = True) -> Model:
    net = Net("mobilenet_v2", image(batch), folded=folded)
    x = net.relu6(net.conv("x", 32, 3, 2))
    for expand, k, repeats, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for i in range(repeats):
            stride, start, width = first_stride if i == 0 else 1, x, net.channels[x] * expand
            x = net.relu6(net.conv(x, width, 1)) if expand > 1 else x
            x = net.conv(net.relu6(net.conv(x, width, 3, stride, groups=width)), k, 1)
            x = net.op("Add", start, x) if stride == 1 and net.channels[start] == k else x
    return net.model(net.classifier(net.relu6(net.conv(x, 1280, 1)), 1000))


def _divisible(value: float, by: int = 8) -> int:
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


def _squeeze_excite(net: Net, x: str, squeezed: int, gate: str) -> str:
    y = net.relu(net.conv(net.op("GlobalAveragePool", x), squeezed, 1, norm=False))
    return net.op("Mul", x, net.op(gate, net.conv(y, net.channels[x], 1, norm=False)))


def mobilenet_v3(layers: Sequence[tuple[int, int, int, bool, bool, int]], last: int) -> Model:
    net = Net("mobilenet_v3", image())
    x = net.op("HardSwish", net.conv("x", 16, 3, 2))
    for size, width, k, excite, hard, stride in layers:
        start = x
        act = (lambda v: net.op("HardSwish", v)) if hard else net.relu
        x = act(net.conv(x, width, 1)) if width != net.channels[x] else x
        x = act(net.conv(x, width, size, stride, groups=width))
        x = _squeeze_excite(net, x, _divisible(width / 4), "HardSigmoid") if excite else x
        x = net.conv(x, k, 1)
        x = net.op("Add", start, x) if stride == 1 and net.channels[start] == k else x
    x = net.op("HardSwish", net.conv(x, 6 * net.channels[x], 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.fully_connected(net.op("HardSwish", net.fully_connected(x, last)), 1000))


MOBILENET_V3_LARGE = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1), (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1), (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
MOBILENET_V3_SMALL = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1), (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1), (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip


def efficientnet_b0() -> Model:
    net = Net("efficientnet_b0", image())
    x = net.swish(net.conv("x", 32, 3, 2))
    for expand, k, repeats, first_stride, size in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for i in range(repeats):
            stride, start, width = first_stride if i == 0 else 1, x, net.channels[x] * expand
            squeezed = net.channels[x] // 4
            x = net.swish(net.conv(x, width, 1)) if expand > 1 else x
            x = net.swish(net.conv(x, width, size, stride, groups=width))
            y = net.swish(net.conv(net.op("GlobalAveragePool", x), squeezed, 1, norm=False))
            x = net.op("Mul", net.op("Sigmoid", net.conv(y, width, 1, norm=False)), x, channels=width)
            x = net.conv(x, k, 1)
            x = net.op("Add", start, x) if stride == 1 and net.channels[start] == k else x
    return net.model(net.classifier(net.swish(net.conv(x, 1280, 1)), 1000))


def resnet(
    repeats: Sequence[int], *, bottleneck: bool, stride_in_1x1: bool = False, folded: bool = True, batch: Any = 1
) -> Model:
    net = Net("resnet", image(batch), folded=folded)
    x = net.max_pool(net.relu(net.conv("x", 64, 7, 2)), 3, 2, 1)
    for stage, count in enumerate(repeats):
        width = 64 << stage
        for i in range(count):
            stride, start = 2 if stage and i == 0 else 1, x
            if bottleneck:
                first, second = (stride, 1) if stride_in_1x1 else (1, stride)
                x = net.relu(net.conv(net.relu(net.conv(x, width, 1, first)), width, 3, second))
                x = net.conv(x, 4 * width, 1)
            else:
                x = net.conv(net.relu(net.conv(x, width, 3, stride)), width, 3)
            if stride == 2 or net.channels[start] != net.channels[x]:
                start = net.conv(start, net.channels[x], 1, stride)
            x = net.relu(net.op("Add", x, start))
    return net.model(net.classifier(x, 1000))


def squeezenet(version: str) -> Model:
    net = Net("squeezenet", image())

    def fire(x: str, squeeze: int, expand: int) -> str:
        y = net.relu(net.conv(x, squeeze, 1, norm=False))
        return net.concat(net.relu(net.conv(y, expand, 1, norm=False)), net.relu(net.conv(y, expand, 3, norm=False)))

    old = version == "1.0"
    x = net.relu(net.conv("x", 96 if old else 64, 7 if old else 3, 2, pad=0, norm=False))
    x = net.max_pool(x, 3, 2, ceil=1)
    pools_after = (2, 6) if old else (1, 3)
    for i, (squeeze, expand) in enumerate(((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))):
        x = fire(x, squeeze, expand)
        x = net.max_pool(x, 3, 2, ceil=1) if i in pools_after else x
    x = net.relu(net.conv(x, 1000, 1, norm=False))
    return net.model(net.op("Flatten", net.op("GlobalAveragePool", x)))


def shufflenet_v2() -> Model:
    net = Net("shufflenet_v2", image())

    def shuffle(x: str) -> str:
        k, size = net.channels[x], sizes[-1]
        y = net.op("Reshape", x, net.constant([1, 2, k // 2, size, size]))
        y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
        return net.op("Reshape", y, net.constant([1, k, size, size]), channels=k)

    def half(x: str, which: int) -> str:
        k = net.channels[x] // 2
        bounds = (net.constant([which * k]), net.constant([(which + 1) * k]), net.constant([1]))
        return net.op("Slice", x, *bounds, channels=k)

    sizes = [56]
    x = net.max_pool(net.relu(net.conv("x", 24, 3, 2)), 3, 2, 1)
    for k, repeats in ((116, 4), (232, 8), (464, 4)):
        sizes.append(sizes[-1] // 2)
        width = k // 2
        left = net.relu(net.conv(net.conv(x, net.channels[x], 3, 2, groups=net.channels[x]), width, 1))
        right = net.relu(net.conv(x, width, 1))
        right = net.relu(net.conv(net.conv(right, width, 3, 2, groups=width), width, 1))
        x = shuffle(net.concat(left, right))
        for _ in range(repeats - 1):
            right = net.relu(net.conv(half(x, 1), width, 1))
            right = net.relu(net.conv(net.conv(right, width, 3, groups=width), width, 1))
            x = shuffle(net.concat(half(x, 0), right))
    return net.model(net.classifier(net.relu(net.conv(x, 1024, 1)), 1000))


def vgg16() -> Model:
    net = Net("vgg16", image())
    x = "x"
    for k, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            x = net.relu(net.conv(x, k, 3, norm=False))
        x = net.max_pool(x, 2, 2)
    x = net.op("Flatten", x, channels=512 * 7 * 7)
    x = net.relu(net.fully_connected(net.relu(net.fully_connected(x, 4096)), 4096))
    return net.model(net.fully_connected(x, 1000))


def densenet121() -> Model:
    net = Net("densenet121", image(), folded=False)

    def bare(x: str, k: int, size: int) -> str:
        pads = [size // 2] * 4
        weight = net.weight(k, net.channels[x], size, size)
        return net.op("Conv", x, weight, channels=k, kernel_shape=[size, size], pads=pads)

    x = net.max_pool(net.relu(net.conv("x", 64, 7, 2)), 3, 2, 1)
    for stage, repeats in enumerate((6, 12, 24, 16)):
        for _ in range(repeats):
            y = bare(net.relu(net.norm(x)), 128, 1)
            x = net.concat(x, bare(net.relu(net.norm(y)), 32, 3))
        if stage < 3:
            x = net.avg_pool(bare(net.relu(net.norm(x)), net.channels[x] // 2, 1), 2, 2)
    return net.model(net.classifier(net.relu(net.norm(x)), 1000))


def inception_v3() -> Model:
    net = Net("inception_v3", image(size=299))

    def conv(x: str, k: int, size: Any, stride: int = 1, pad: Any = 0) -> str:
        return net.relu(net.conv(x, k, size, stride, pad=pad))

    def block_a(x: str, pool: int) -> str:
        five = conv(conv(x, 48, 1), 64, 5, pad=2)
        three = conv(conv(conv(x, 64, 1), 96, 3, pad=1), 96, 3, pad=1)
        return net.concat(conv(x, 64, 1), five, three, conv(net.avg_pool(x, 3, 1, 1), pool, 1))

    def block_c(x: str, k: int) -> str:
        seven = conv(conv(conv(x, k, 1), k, (1, 7), pad=(0, 3)), 192, (7, 1), pad=(3, 0))
        double = conv(conv(conv(x, k, 1), k, (7, 1), pad=(3, 0)), k, (1, 7), pad=(0, 3))
        double = conv(conv(double, k, (7, 1), pad=(3, 0)), 192, (1, 7), pad=(0, 3))
        return net.concat(conv(x, 192, 1), seven, double, conv(net.avg_pool(x, 3, 1, 1), 192, 1))

    def block_e(x: str) -> str:
        three, double = conv(x, 384, 1), conv(conv(x, 448, 1), 384, 3, pad=1)
        parts = [conv(y, 384, size, pad=pad) for y in (three, double) for size, pad in (((1, 3), (0, 1)), ((3, 1), (1, 0)))]
        return net.concat(conv(x, 320, 1), *parts, conv(net.avg_pool(x, 3, 1, 1), 192, 1))

    x = conv(conv(conv("x", 32, 3, 2), 32, 3), 64, 3, pad=1)
    x = conv(conv(net.max_pool(x, 3, 2), 80, 1), 192, 3)
    x = net.max_pool(x, 3, 2)
    for pool in (32, 64, 64):
        x = block_a(x, pool)
    double = conv(conv(conv(x, 64, 1), 96, 3, pad=1), 96, 3, 2)
    x = net.concat(conv(x, 384, 3, 2), double, net.max_pool(x, 3, 2))
    for k in (128, 160, 160, 192):
        x = block_c(x, k)
    seven = conv(conv(conv(x, 192, 1), 192, (1, 7), pad=(0, 3)), 192, (7, 1), pad=(3, 0))
    x = net.concat(conv(conv(x, 192, 1), 320, 3, 2), conv(seven, 192, 3, 2), net.max_pool(x, 3, 2))
    return net.model(net.classifier(block_e(block_e(x)), 1000))


def _encoder(net: Net, x: str, sequence: Any, *, width: int, heads: int, pre_norm: bool) -> str:
    """Add one transformer layer over a value of shape (1, sequence, width)."""

    def split(y: str, *perm: int) -> str:
        y = net.op("Reshape", y, net.constant([1, sequence, heads, width // heads]))
        return net.op("Transpose", y, perm=list(perm))

    inner = net.layer_norm(x) if pre_norm else x
    q, k, v = (net.linear(inner, width) for _ in range(3))
    scores = net.op("MatMul", split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1))
    scores = net.op("Softmax", net.op("Div", scores, net.constant(8, np.float32)), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, split(v, 0, 2, 1, 3)), perm=[0, 2, 1, 3])
    mixed = net.op("Reshape", mixed, net.constant([1, sequence, width]), channels=width)
    x = net.op("Add", net.linear(mixed, width), x)
    x = x if pre_norm else net.layer_norm(x)
    inner = net.layer_norm(x) if pre_norm else x
    x = net.op("Add", net.linear(net.op("Erf", net.linear(inner, 4 * width)), width), x)
    return x if pre_norm else net.layer_norm(x)


def bert_base(sequence: int = 128, *, pooler: bool = True) -> Model:
    net = Net("bert_base", ("ids", (1, sequence), np.int64), ("types", (1, sequence), np.int64))
    x = net.op("Gather", net.weight(30522, 768), "ids", channels=768)
    x = net.op("Add", x, net.op("Gather", net.weight(2, 768), "types", channels=768))
    positions = net.op("Gather", net.weight(512, 768), net.constant([list(range(sequence))]), channels=768)
    x = net.layer_norm(net.op("Add", x, positions))
    for _ in range(12):
        x = _encoder(net, x, sequence, width=768, heads=12, pre_norm=False)
    if pooler:
        first = net.op("Gather", x, net.constant(0), axis=1, channels=768)
        x = net.op("Tanh", net.fully_connected(first, 768))
    return net.model(x)


def gpt2_small(sequence: int = 128, *, head: bool = False) -> Model:
    net = Net("gpt2_small", ("ids", (1, sequence), np.int64))
    table = net.weight(50257, 768)
    positions = net.op("Gather", net.weight(1024, 768), net.constant([list(range(sequence))]), channels=768)
    x = net.op("Add", net.op("Gather", table, "ids", channels=768), positions)
    for _ in range(12):
        x = _encoder(net, x, sequence, width=768, heads=12, pre_norm=True)
    x = net.layer_norm(x)
    if head:  # its weight is the transposed table, which is no new parameter
        x = net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]), channels=50257)
    return net.model(x)


def vit_b_16() -> Model:
    net = Net("vit_b_16", image())
    weight, bias = net.weight(768, 3, 16, 16), net.weight(768)
    x = net.op("Conv", "x", weight, bias, channels=768, kernel_shape=[16, 16], strides=[16, 16])
    x = net.op("Transpose", net.op("Reshape", x, net.constant([1, 768, 196])), perm=[0, 2, 1], channels=768)
    x = net.op("Concat", net.weight(1, 1, 768), x, axis=1, channels=768)
    x = net.op("Add", x, net.weight(1, 197, 768), channels=768)
    for _ in range(12):
        x = _encoder(net, x, 197, width=768, heads=12, pre_norm=True)
    first = net.op("Gather", net.layer_norm(x), net.constant(0), axis=1, channels=768)
    return net.model(net.fully_connected(first, 1000))
