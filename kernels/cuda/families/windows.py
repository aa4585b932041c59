"""Windows over images whose channels come last: maximum and average pools, and depthwise convolutions.

A thread takes a run of channels of an output pixel at a time, and loads a few taps of its window at once. Global pools are
reductions of columns (`kernels.cuda.families.columns`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

from kernels.cuda.emit.builder import below, both
from kernels.cuda.emit.descriptor import LIMIT, OTHERS, Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_threads
from kernels.cuda.errors import CudaError
from kernels.cuda.families.problem import Window
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError

WindowOp = Literal["max_pool", "average_pool", "depthwise"]
THREADS = 128
TAPS = (4, 9)  # that a thread loads at once: those of 2×2 and of 3×3


class WindowDescriptor(Descriptor):
    """What a window kernel is told.

    items: runs of y.  taps: of the kernel.  counted_*: the part of the image and its padding whose taps an average counts:
    it begins so many rows above and columns left of the image.  runs: of a pixel.
    """

    _fields_ = listed(
        ("x", "w", "y", "bias", *OTHERS),
        (
            *("items", "taps", "channels", "x_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
            *("height", "width", "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height", "dilation_width"),
            *("counted_top", "counted_left", "counted_height", "counted_width"),
        ),
        ("runs", "out_width", "out_pixels", "kernel_width"),
    )


@dataclass(frozen=True, slots=True)
class WindowForm:
    """What the code of a window kernel depends on. run: channels that move at once.  taps: that a thread loads at once.

    Raises EmitError for another number of taps, or a bias that no pool has.
    """

    op: WindowOp
    storage: Storage
    run: int
    taps: int = 9
    bias: bool = False
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        if self.taps not in TAPS or (self.bias and self.op != "depthwise"):
            raise EmitError(f"{self.op}: {self.taps} taps at once, bias={self.bias}, need {TAPS}, and a bias for depthwise only")
        self.finish()

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.storage, self.run, self.bias, self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.storage, self.op, f"run{self.run}", f"taps{self.taps}", "bias" if self.bias else ""]
        return kernel_name(words, self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: none."""
        return 0

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the runs of y."""

        def body(fields: Fields) -> None:
            with share_among_threads(fields.k, fields.number("items"), THREADS) as item:
                _emit_run(fields, self, item)

        return emit_kernel(self, WindowDescriptor, body)


@dataclass(frozen=True, slots=True)
class _Tap:
    """A tap of a window. number: of all.  inside: whether it lies in the image.  offset: of its run in x."""

    number: Value
    inside: Value
    counted: Value
    offset: Value


def _emit_run(fields: Fields, form: WindowForm, item: Value) -> None:
    k, number = fields.k, fields.number
    pixel, run = fields.divide(item, "runs")
    image, place = fields.divide(pixel, "out_pixels")
    row, column = fields.divide(place, "out_width")
    channel = run * form.run
    top = row * number("stride_height") - number("pad_top")
    left = column * number("stride_width") - number("pad_left")
    start, taps = image * number("height"), number("taps")

    def tap_at(tap: Value) -> _Tap:
        down, right = fields.divide(tap, "kernel_width")
        y, x = top + down * number("dilation_height"), left + right * number("dilation_width")
        exists = below(k, tap, taps)
        inside = both(k, below(k, y, number("height")), below(k, x, number("width")))
        within_rows = below(k, y + number("counted_top"), number("counted_height"))
        within_columns = below(k, x + number("counted_left"), number("counted_width"))
        counted = both(k, both(k, within_rows, within_columns), exists)
        return _Tap(tap, both(k, inside, exists), counted, ((start + y) * number("width") + x) * number("x_stride") + channel)

    memory = RunMemory.of(form.storage, form.run)
    zero = k.const(F32.by(form.run), float("-inf") if form.op == "max_pool" else 0.0)
    turns = k.convert("zext", (taps + (form.taps - 1)) // form.taps, I64)
    with k.fold("taps", 0, turns, 1, (zero, k.const(I32, 0), k.const(F32, 0.0)), runs=True) as fold:
        total, first, count = fold.values
        found = [tap_at(first + n) for n in range(form.taps)]
        loads = [memory.load(k, fields.address("x"), tap.offset, all_lanes(tap.inside)) for tap in found]
        if form.op == "depthwise":
            weights = [
                memory.load(k, fields.address("w"), tap.number * number("channels") + channel, all_lanes(tap.inside))
                for tap in found
            ]
            for value, weight in zip(loads, weights, strict=True):
                total = k.fma(value, weight, total)
        else:
            for tap, value in zip(found, loads, strict=True):
                if form.op == "max_pool":
                    total = k.select(tap.inside, k.maximum(total, value), total)
                else:
                    total = total + value  # 0 outside
                    count = count + k.convert("uitofp", tap.counted, F32)
        fold.values = [total, first + form.taps, count]
    total, _, count = fold.values
    if form.op == "average_pool":
        total = total * k.splat(1.0 / count, total.type)
    form.finish().emit(fields, total, pixel, channel, k.compare("eq", item, item))


@dataclass(frozen=True, slots=True)
class Windows:
    """A window that moves over images. *_stride: elements from a pixel to the next, dense where None.  others: those of what the
    expression reads.  count_padding: whether an average counts taps in the padding.

    Raises CudaError for sizes below 1 or too large.
    """

    window: Window
    x_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()
    count_padding: bool = False

    def __post_init__(self) -> None:
        window = self.window
        x = window.batch * window.height * window.width * self.strides[0]
        y = window.batch * window.out[0] * window.out[1] * self.strides[1]
        for name, size in (("x", x), ("y", y), ("out", min(window.out))):
            if not 0 < size < LIMIT:
                raise CudaError(f"windows: {name} has {size} elements for {window}, need 1 to {LIMIT - 1}")

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of x, y and the others."""
        return self.x_stride or self.window.channels, self.y_stride or self.window.channels, *self.others

    def launch(self, op: WindowOp, storage: Storage, *, expression: Expression = UNCHANGED, **names: str) -> Launch:
        """Return the launch.

        names: of the values at x, y, r0, r1, and of a depthwise convolution's w, (kernel height, kernel width, channels), and
        bias, float32, where it has one. Raises CudaError for other names.
        """
        bias = "bias" in names
        window, taps = self.window, self.window.kernel[0] * self.window.kernel[1]
        run = gcd(128 // STORAGES[storage].bits, window.channels, *self.strides)
        form = WindowForm(op, storage, run, TAPS[0] if taps <= TAPS[0] else TAPS[1], bias, expression)
        pixels = window.batch * window.out[0] * window.out[1]
        told = WindowDescriptor(items=pixels * window.channels // run, taps=taps, channels=window.channels)
        told.height, told.width = window.height, window.width
        told.stride_height, told.stride_width = window.strides
        told.pad_top, told.pad_left = window.padding[:2]
        told.dilation_height, told.dilation_width = window.dilations
        top, left, bottom, right = window.padding if self.count_padding else (0, 0, 0, 0)
        told.counted_top, told.counted_left = top, left
        told.counted_height, told.counted_width = window.height + top + bottom, window.width + left + right
        for name, stride in zip(("x", "y", *OTHERS), self.strides, strict=False):
            setattr(told, f"{name}_stride", stride)
        for name, divisor in (
            ("runs", window.channels // run),
            ("out_width", window.out[1]),
            ("out_pixels", window.out[0] * window.out[1]),
            ("kernel_width", window.kernel[1]),
        ):
            told.set_divisor(name, divisor)
        needs = ("x", "y", *("w",) * (op == "depthwise"), *("bias",) * bias, *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-told.items // THREADS), needs, names)
