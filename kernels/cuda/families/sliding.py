"""Windows over images whose channels come last: maximum and average pools, and depthwise convolutions.

A thread takes a run of channels of one or a few neighbouring output pixels at a time, and loads some taps of their windows at
once. Global pools are reductions of columns (`kernels.cuda.families.columns`).
"""

from __future__ import annotations

from math import gcd
from typing import Literal

from kernels.cuda.emit.builder import await_previous, below, both
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, check_sizes, listed, others_sizes
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_threads
from kernels.cuda.errors import CudaError
from kernels.cuda.families.problem import Window
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError
from kernels.record import record

WindowOp = Literal["max_pool", "average_pool", "depthwise"]
THREADS = 128
WAYS = {1: (4, 9), 2: (3, 5), 4: (3, 5)}  # by pixels of a thread: how many taps it may load at once
MANY = 1 << 17  # runs of y from which a thread takes several pixels; with fewer, threads are too few to hide latency


class WindowDescriptor(Descriptor):
    """What a window kernel is told.

    items: runs of y, of as many neighbouring pixels as a thread takes.  taps: of the kernel.  groups: of neighbouring pixels in a
    row.  counted_*: the part of the image and its padding whose taps an average counts; it begins so many rows above and
    columns left of the image.  runs: of a pixel.
    """

    _fields_ = listed(
        ("x", "w", "y", "bias", *OTHERS),
        (
            *("items", "taps", "channels", "x_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
            *("height", "width", "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height", "dilation_width"),
            *("counted_top", "counted_left", "counted_height", "counted_width", "out_width"),
        ),
        ("runs", "groups", "out_height", "kernel_width"),
    )


@record
class WindowForm:
    """What the code of a window kernel depends on.

    run: channels that move at once.  taps: of a pixel, that a thread loads at once.  pixels: of a thread, side by side.
    Raises EmitError for another number of taps or pixels, or a bias that no pool has.
    """

    op: WindowOp
    storage: Storage
    run: int
    taps: int = 9
    pixels: int = 1
    bias: bool = False
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        if self.taps not in WAYS.get(self.pixels, ()) or (self.bias and self.op != "depthwise"):
            raise EmitError(
                f"{self.op}: {self.taps} taps of {self.pixels} pixels, bias={self.bias}, need those of {WAYS}, and a bias for "
                "depthwise only"
            )
        self.finish()

    @property
    def others(self) -> int:
        """How many arrays like y the expression reads."""
        return len(self.expression.operands) - 1

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.storage, self.run, self.bias, self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.storage, self.op, f"run{self.run}", f"taps{self.taps}of{self.pixels}", "bias" if self.bias else ""]
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

        return emit_kernel(self, WindowDescriptor, body, waits=True)


def _emit_run(fields: Fields, form: WindowForm, item: Value) -> None:
    k, number = fields.k, fields.number
    item, run = fields.divide(item, "runs")
    line, group = fields.divide(item, "groups")
    image, row = fields.divide(line, "out_height")
    channel, column = run * form.run, group * form.pixels
    top = row * number("stride_height") - number("pad_top")
    lefts = [(column + n) * number("stride_width") - number("pad_left") for n in range(form.pixels)]
    start, taps = image * number("height"), number("taps")
    memory, kind = RunMemory.of(form.storage, form.run), F32.by(form.run)

    def place(n: int) -> tuple[Value, Value, Value]:
        """Return a pixel of the thread in y, its first channel, and whether there is such a pixel."""
        return line * number("out_width") + column + n, channel, below(k, column + n, number("out_width"))

    def load_weights(first: Value) -> list[Value]:
        """Load the weights of the taps that are under way at once."""
        if form.op != "depthwise":
            return []
        places = [(first + n, below(k, first + n, taps)) for n in range(form.taps)]
        return [
            memory.load(k, fields.address("w"), tap * number("channels") + channel, all_lanes(exists)) for tap, exists in places
        ]

    def load_tap(tap: Value) -> list[tuple[Value, Value, Value]]:
        """Load a tap: of every pixel whether it is inside and whether it is counted, and x."""
        down, right = fields.divide(tap, "kernel_width")
        y, right = top + down * number("dilation_height"), right * number("dilation_width")
        exists = below(k, tap, taps)
        inside = both(k, exists, below(k, y, number("height")))
        counted = both(k, exists, below(k, y + number("counted_top"), number("counted_height")))
        at = (start + y) * number("width")
        found = []
        for left in lefts:
            x = left + right
            valid = both(k, inside, below(k, x, number("width")))
            value = memory.load(k, fields.address("x"), (at + x) * number("x_stride") + channel, all_lanes(valid))
            found.append((valid, both(k, counted, below(k, x + number("counted_left"), number("counted_width"))), value))
        return found

    weights = load_weights(k.const(I32, 0))  # of the model, so they need not wait
    await_previous(k)
    loaded = [form.finish().load(fields, *place(n)) for n in range(form.pixels)]
    count = form.pixels
    neutral = k.const(kind, float("-inf") if form.op == "max_pool" else 0.0)
    state = [k.const(I32, 0), *[neutral] * count, *[k.const(F32, 0.0)] * count, *weights]
    with k.fold("taps", 0, k.convert("zext", (taps + (form.taps - 1)) // form.taps, I64), 1, state, runs=True) as fold:
        first, totals, counts = fold.values[0], fold.values[1 : 1 + count], fold.values[1 + count : 1 + 2 * count]
        weights = fold.values[1 + 2 * count :]
        found = [load_tap(first + n) for n in range(form.taps)]
        following = load_weights(first + form.taps)
        for tap, pixels in enumerate(found):
            for n, (valid, counted, value) in enumerate(pixels):
                if form.op == "depthwise":
                    totals[n] = k.fma(value, weights[tap], totals[n])
                elif form.op == "max_pool":
                    totals[n] = k.select(valid, k.maximum(totals[n], value), totals[n])
                else:
                    totals[n] = totals[n] + value  # 0 outside
                    counts[n] = counts[n] + k.convert("uitofp", counted, F32)
        fold.values = [first + form.taps, *totals, *counts, *following]
    totals, counts = fold.values[1 : 1 + count], fold.values[1 + count : 1 + 2 * count]
    for n, (total, counted, read) in enumerate(zip(totals, counts, loaded, strict=True)):
        result = total * k.splat(1.0 / counted, kind) if form.op == "average_pool" else total
        form.finish().store(fields, result, *place(n), read)


@record
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
        x, y = (window.batch * height * width for height, width in ((window.height, window.width), window.out))
        sizes = {"x": x * self.strides[0], "y": y * self.strides[1], "out": min(window.out)}
        check_sizes("windows", sizes | others_sizes(y, self.others))

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of x, y and the others."""
        return self.x_stride or self.window.channels, self.y_stride or self.window.channels, *self.others

    def form(self, op: WindowOp, storage: Storage, *, bias: bool = False, expression: Expression = UNCHANGED) -> WindowForm:
        """Return the form for these windows: several pixels a thread in a depthwise convolution of many."""
        window, taps = self.window, self.window.kernel[0] * self.window.kernel[1]
        run = gcd(128 // STORAGES[storage].bits, window.channels, *self.strides)
        runs = window.batch * window.out[0] * window.out[1] * window.channels // run
        pixels = 4 if op == "depthwise" and runs >= MANY else 1
        at_once = next((each for each in WAYS[pixels] if each >= taps), WAYS[pixels][-1])
        if pixels > 1:
            at_once = WAYS[pixels][window.kernel[1] > WAYS[pixels][0]]  # a row of the kernel
        return WindowForm(op, storage, run, at_once, pixels, bias, expression)

    def launch(self, form: WindowForm, **names: str) -> Launch:
        """Return the launch.

        names: of the values at x, y, r0, r1, and of a depthwise convolution's w, (kernel height, kernel width, channels), and
        bias, float32, where the form has one. Raises CudaError for other names, or a form whose kernel does not serve these
        windows.
        """
        window = self.window
        if any(size % form.run for size in (window.channels, *self.strides)) or len(self.others) != form.others:
            raise CudaError(f"windows: {self}, need channels and strides in multiples of {form.run}, as {form.name} reads them")
        groups, height = -(-window.out[1] // form.pixels), window.out[0]
        told = WindowDescriptor(items=window.batch * height * groups * window.channels // form.run)
        told.taps, told.channels, told.out_width = window.kernel[0] * window.kernel[1], window.channels, window.out[1]
        told.height, told.width = window.height, window.width
        told.stride_height, told.stride_width = window.strides
        told.pad_top, told.pad_left = window.padding[:2]
        told.dilation_height, told.dilation_width = window.dilations
        top, left, bottom, right = window.padding if self.count_padding else (0, 0, 0, 0)
        told.counted_top, told.counted_left = top, left
        told.counted_height, told.counted_width = window.height + top + bottom, window.width + left + right
        for name, stride in zip(("x", "y", *OTHERS), self.strides, strict=False):
            setattr(told, f"{name}_stride", stride)
        divisors = {"runs": window.channels // form.run, "groups": groups, "out_height": height, "kernel_width": window.kernel[1]}
        for name, divisor in divisors.items():
            told.set_divisor(name, divisor)
        needs = ("x", "y", *("w",) * (form.op == "depthwise"), *("bias",) * form.bias, *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-told.items // THREADS), needs, names)
