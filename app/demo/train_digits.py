"""Train the demo model: a small convolutional network on scikit-learn's 8x8 handwritten digits, written as ONNX.

usage: python -m app.demo.train_digits [OUT_DIR]      about a minute on one core; needs scikit-learn (in the dev extra)

The data are the UCI "Optical Recognition of Handwritten Digits" test set inside scikit-learn's wheel: 1,797 images of 43
writers' digits, 0-16 grey levels. Every fifth image is held out (`held_out`), never seen in training; tests measure accuracy
on those. Forward, backward and Adam are plain numpy, so that the model needs no training framework to be made again.

The network: (x / 16) → [conv 3x3 → batch norm → ReLU] x 2 → max pool 2 → [conv 3x3 → batch norm → ReLU] → max pool 2 → linear →
softmax, arg-max. The ONNX file keeps its batch norms, so that folding them is the engine's work, and its batch is dynamic.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Params = dict[str, Floats]

CHANNELS = (1, 16, 32, 32)  # of the input and after each convolution
POOLED = (False, True, True)  # whether a 2x2 max pool follows
CLASSES = 10
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SEED = 40, 64, 2e-3, 1e-4, 0
EPSILON = np.float32(1e-5)
MOMENTUM = np.float32(0.9)


def load_split() -> tuple[tuple[Floats, Ints], tuple[Floats, Ints]]:
    """Return (training images, labels), (held-out images, labels); images are (n, 1, 8, 8) float32 in 0..16."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  only training and tests need it

    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 4
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def initialise(rng: np.random.Generator) -> Params:
    """He-normal weights, unit batch norms."""
    params: Params = {}
    for i, (c, k) in enumerate(itertools.pairwise(CHANNELS)):
        params[f"conv{i}.weight"] = rng.normal(0, np.sqrt(2 / (9 * c)), (k, c, 3, 3)).astype(np.float32)
        params[f"norm{i}.gamma"] = np.ones(k, np.float32)
        params[f"norm{i}.beta"] = np.zeros(k, np.float32)
    features = CHANNELS[-1] * 4
    params["linear.weight"] = rng.normal(0, np.sqrt(1 / features), (CLASSES, features)).astype(np.float32)
    params["linear.bias"] = np.zeros(CLASSES, np.float32)
    return params


def columns(x: Floats) -> Floats:
    """(n, c, h, w) → (n, h·w, c·9): the zero-padded 3x3 window around every pixel."""
    n, c, h, w = x.shape
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h * w, c * 9)


def uncolumns(grad: Floats, shape: tuple[int, ...]) -> Floats:
    """The adjoint of `columns`: add every window's gradient back to the pixels it came from."""
    n, c, h, w = shape
    padded = np.zeros((n, c, h + 2, w + 2), np.float32)
    taps = grad.reshape(n, h, w, c, 3, 3).transpose(0, 3, 4, 5, 1, 2)
    for r in range(3):
        for s in range(3):
            padded[:, :, r : r + h, s : s + w] += taps[:, :, r, s]
    return padded[:, :, 1:-1, 1:-1]


class Network:
    """Forward and backward of the whole net; `running` holds the batch-norm statistics used after training."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.running: Params = {}
        for i, k in enumerate(CHANNELS[1:]):
            self.running[f"norm{i}.mean"] = np.zeros(k, np.float32)
            self.running[f"norm{i}.var"] = np.ones(k, np.float32)

    def forward(self, x: Floats, training: bool) -> tuple[Floats, list[tuple[Floats, ...]]]:
        """Return the logits (n, 10) and what the backward pass needs of each layer."""
        tape: list[tuple[Floats, ...]] = []
        x = x / np.float32(16)
        for i, pooled in enumerate(POOLED):
            n, c, h, w = x.shape
            cols = columns(x)
            kernel = self.params[f"conv{i}.weight"].reshape(-1, c * 9)
            y = (cols @ kernel.T).reshape(n, h, w, -1).transpose(0, 3, 1, 2)
            mean, var = self._statistics(i, y, training)
            inverse = 1 / np.sqrt(var + EPSILON)
            normal = (y - mean[:, None, None]) * inverse[:, None, None]
            z = normal * self.params[f"norm{i}.gamma"][:, None, None] + self.params[f"norm{i}.beta"][:, None, None]
            active = np.maximum(z, 0)
            tape.append((x, cols, normal, inverse, active))
            x = active.reshape(n, -1, h // 2, 2, w // 2, 2).max((3, 5)) if pooled else active
        flat = x.reshape(len(x), -1)
        tape.append((flat,))
        return flat @ self.params["linear.weight"].T + self.params["linear.bias"], tape

    def _statistics(self, i: int, y: Floats, training: bool) -> tuple[Floats, Floats]:
        if not training:
            return self.running[f"norm{i}.mean"], self.running[f"norm{i}.var"]
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
        for name, value in (("mean", mean), ("var", var)):
            self.running[f"norm{i}.{name}"] = MOMENTUM * self.running[f"norm{i}.{name}"] + (1 - MOMENTUM) * value
        return mean, var

    def backward(self, grad: Floats, tape: list[tuple[Floats, ...]]) -> Params:
        """Gradients of every parameter, given that of the logits."""
        grads: Params = {}
        (flat,) = tape[-1]
        grads["linear.weight"], grads["linear.bias"] = grad.T @ flat, grad.sum(0)
        grad = grad @ self.params["linear.weight"]
        for i in reversed(range(len(POOLED))):
            x, cols, normal, inverse, active = tape[i]
            n, k, h, w = active.shape
            if POOLED[i]:
                blocks = active.reshape(n, k, h // 2, 2, w // 2, 2)
                winners = (blocks == blocks.max((3, 5), keepdims=True)).astype(np.float32)
                winners /= winners.sum((3, 5), keepdims=True)  # ties share
                grad = (winners * grad.reshape(n, k, h // 2, 1, w // 2, 1)).reshape(active.shape)
            grad = grad.reshape(active.shape) * (active > 0)
            grads[f"norm{i}.gamma"], grads[f"norm{i}.beta"] = (grad * normal).sum((0, 2, 3)), grad.sum((0, 2, 3))
            grad = grad * self.params[f"norm{i}.gamma"][:, None, None]
            centred = grad - grad.mean((0, 2, 3), keepdims=True) - normal * (grad * normal).mean((0, 2, 3), keepdims=True)
            rows = (centred * inverse[:, None, None]).transpose(0, 2, 3, 1).reshape(n, h * w, k)
            kernel = self.params[f"conv{i}.weight"]
            grads[f"conv{i}.weight"] = np.tensordot(rows, cols, ((0, 1), (0, 1))).reshape(kernel.shape)
            grad = uncolumns(rows @ kernel.reshape(k, -1), x.shape)
        return grads


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Move every image by up to one pixel each way: writers do not centre their digits alike."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = np.empty_like(images)
    for row, (dy, dx) in enumerate(rng.integers(0, 3, (len(images), 2))):
        moved[row] = padded[row, :, dy : dy + 8, dx : dx + 8]
    return moved


def batches(n: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Indices of one shuffled epoch."""
    order = rng.permutation(n)
    yield from (order[i : i + BATCH] for i in range(0, n, BATCH))


def train(images: Floats, labels: Ints) -> Network:
    """Adam with a cosine learning rate on softmax cross-entropy."""
    rng = np.random.default_rng(SEED)
    network = Network(initialise(rng))
    first = {name: np.zeros_like(p) for name, p in network.params.items()}
    second = {name: np.zeros_like(p) for name, p in network.params.items()}
    step, steps = 0, EPOCHS * -(-len(labels) // BATCH)
    for _ in range(EPOCHS):
        for rows in batches(len(labels), rng):
            step += 1
            rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            logits, tape = network.forward(shifted(images[rows], rng), training=True)
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            shares[np.arange(len(rows)), labels[rows]] -= 1
            for name, grad in network.backward(shares / np.float32(len(rows)), tape).items():
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.999 * second[name] + 0.001 * grad * grad
                update = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                decayed = network.params[name] * np.float32(1 - rate * WEIGHT_DECAY)
                network.params[name] = (decayed - rate * update).astype(np.float32)
    return network


def to_onnx(network: Network) -> onnx.ModelProto:
    """Write the network with a named dynamic batch and both outputs a client may want."""
    nodes = [helper.make_node("Div", ["image", "grey_levels"], ["scaled"], "scale")]
    tensors = {"grey_levels": np.float32(16), **network.params, **network.running}
    value = "scaled"
    for i, pooled in enumerate(POOLED):
        norm = [f"norm{i}.{part}" for part in ("gamma", "beta", "mean", "var")]
        nodes += [
            helper.make_node("Conv", [value, f"conv{i}.weight"], [f"conv{i}"], f"conv{i}", kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"conv{i}", *norm], [f"norm{i}"], f"norm{i}", epsilon=float(EPSILON)),
            helper.make_node("Relu", [f"norm{i}"], [f"relu{i}"], f"relu{i}"),
        ]
        value = f"relu{i}"
        if pooled:
            nodes.append(helper.make_node("MaxPool", [value], [f"pool{i}"], f"pool{i}", kernel_shape=[2, 2], strides=[2, 2]))
            value = f"pool{i}"
    nodes += [
        helper.make_node("Flatten", [value], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "linear.weight", "linear.bias"], ["logits"], "linear", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
        helper.make_node("ArgMax", ["logits"], ["digit"], "argmax", axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
        doc_string="Handwritten digits, 8x8 grey levels 0-16. Trained by app/demo/train_digits.py.",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edgewise")
    onnx.checker.check_model(model, full_check=True)
    return model


def write_images(images: Floats, labels: Ints, folder: Path) -> None:
    """Write the first held-out image of every digit, as a picture to look at and as a request to send."""
    from PIL import Image  # noqa: PLC0415  only for the pictures

    for digit in range(CLASSES):
        image = images[labels == digit][0]
        picture = Image.fromarray((255 - image[0] * 15).astype(np.uint8))  # ink is dark on paper
        picture.resize((128, 128), Image.Resampling.NEAREST).save(folder / f"{digit}.png", optimize=True)
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().astype(int).tolist()}
        (folder / f"{digit}.json").write_text(json.dumps({"inputs": [tensor]}) + "\n")


def main(out_dir: str = str(Path(__file__).parent)) -> None:
    """Train, report the held-out accuracy, and write models/digits.onnx and the images of held-out digits."""
    (images, labels), (held_out_images, held_out_labels) = load_split()
    network = train(images, labels)
    logits, _ = network.forward(held_out_images, training=False)
    right = int((logits.argmax(1) == held_out_labels).sum())
    path = Path(out_dir) / "models" / "digits.onnx"
    onnx.save(to_onnx(network), path)
    write_images(held_out_images, held_out_labels, Path(out_dir) / "images")
    sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes, {right} of {len(held_out_labels)} held-out images right\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
