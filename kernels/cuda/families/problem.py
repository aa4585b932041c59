"""One product or convolution as a kernel of `kernels.cuda.families.product` gets it: checked, in chunks, as a descriptor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from kernels.cuda.driver import Memory
from kernels.cuda.emit.descriptor import Descriptor
from kernels.cuda.emit.unit import ROW_BYTES
from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.product import UNITS, Form, Precision

LIMIT = 1 << 31  # kernels count elements, rows and chunks in 32 bits


@dataclass(frozen=True, slots=True)
class Window:
    """The windows of a convolution in images whose channels come last. kernel, strides, dilations: along (height, width).

    padding: rows above, columns to the left, rows below, columns to the right.
    """

    batch: int
    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        sizes, pads = (self.height, self.width), (self.padding[0] + self.padding[2], self.padding[1] + self.padding[3])
        each = zip(sizes, pads, self.kernel, self.strides, self.dilations, strict=True)
        height, width = ((size + pad - dilation * (kernel - 1) - 1) // stride + 1 for size, pad, kernel, stride, dilation in each)
        return height, width


@dataclass(frozen=True, slots=True)
class Problem:
    """A product: m rows, n columns, depth k. window: of a convolution, else None.

    *_stride: elements from a row to the next (of w: from a column of y to the next); of a window's x, from a pixel to the next.
    others: the strides of the matrices that the epilogue reads. All are dense where None is given.
    Raises CudaError for a size below 1 or too large.
    """

    m: int
    n: int
    k: int
    window: Window | None = None
    x_stride: int | None = None
    w_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()

    @staticmethod
    def convolution(
        window: Window,
        out_channels: int,
        *,
        x_stride: int | None = None,
        y_stride: int | None = None,
        others: tuple[int, ...] = (),
    ) -> Problem:
        """Return the product that a convolution is."""
        height, width = window.out
        k = window.kernel[0] * window.kernel[1] * window.channels
        return Problem(window.batch * height * width, out_channels, k, window, x_stride, None, y_stride, others)

    def __post_init__(self) -> None:
        sizes = {"m": self.m, "n": self.n, "k": self.k}
        pixels = self.m if self.window is None else self.window.batch * self.window.height * self.window.width
        sizes |= {"x": pixels * self.strides[0], "w": self.n * self.strides[1], "y": self.m * self.strides[2]}
        for name, size in sizes.items():
            if not 0 < size < LIMIT:
                raise CudaError(f"product: {name} has {size} elements, need 1 to {LIMIT - 1}")

    @property
    def strides(self) -> tuple[int, int, int]:
        """The strides of x, w and y."""
        x = self.k if self.window is None else self.window.channels
        return self.x_stride or x, self.w_stride or self.k, self.y_stride or self.n

    @property
    def flops(self) -> int:
        """Multiplications and additions, 2 a MAC."""
        return 2 * self.m * self.n * self.k

    def copy_bytes(self, precision: Precision) -> int:
        """Return the most bytes that a copy to shared memory can move at once."""
        depth = self.k if self.window is None else self.window.channels
        item_bytes = UNITS[precision][0].bits // 8
        return gcd(16, *(item_bytes * size for size in (depth, self.k, *self.strides[:2])))

    def whole(self, precision: Precision) -> bool:
        """Return whether runs of 8 columns can go to memory whole."""
        item_bytes = UNITS[precision][0].bits // 8
        return self.n % 8 == 0 and all(item_bytes * stride % 16 == 0 for stride in (self.strides[2], *self.others))


@dataclass(frozen=True, slots=True)
class Cut:
    """A problem cut into chunks for a kernel. slices: parts of the depth; every one has work."""

    form: Form
    problem: Problem
    slices: int = 1

    @staticmethod
    def into(form: Form, problem: Problem, slices: int = 1) -> Cut:
        """Cut a problem into at most so many slices.

        Raises GpuUnsupportedError where the form's kernel does not serve the problem.
        """
        served = form.windows == (problem.window is not None), len(problem.others) == len(form.expression.operands) - 1
        aligned = problem.copy_bytes(form.precision) % form.copy_bytes == 0 and form.whole <= problem.whole(form.precision)
        if not (all(served) and aligned):
            need = f"copies of {problem.copy_bytes(form.precision)} bytes, whole={problem.whole(form.precision)}"
            raise GpuUnsupportedError(f"product: {problem}, need {need}, the kernel is {form.name}")
        steps = -(-problem.k * form.item_bytes // ROW_BYTES)
        return Cut(form, problem, -(-steps // -(-steps // slices)))

    @property
    def steps(self) -> int:
        """Steps along the depth."""
        return -(-self.problem.k * self.form.item_bytes // ROW_BYTES)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of y: one above another, side by side."""
        return -(-self.problem.m // self.form.tile.rows), -(-self.problem.n // self.form.tile.columns)

    @property
    def chunks(self) -> int:
        """Tiles × slices."""
        return self.tiles[0] * self.tiles[1] * self.slices

    @property
    def partial_bytes(self) -> int:
        """Memory in which slices meet."""
        return 0 if self.slices == 1 else 4 * self.chunks * self.form.tile.rows * self.form.tile.columns

    @property
    def counter_bytes(self) -> int:
        """Memory of counters, which is 0 before the first launch, and is so again after each."""
        return 0 if self.slices == 1 else 4 * self.tiles[0] * self.tiles[1]

    def descriptor(
        self,
        x: Memory,
        w: Memory,
        y: Memory,
        *,
        bias: Memory | None = None,
        others: Sequence[Memory] = (),
        partial: Memory | None = None,
        counters: Memory | None = None,
    ) -> Descriptor:
        """Return what the kernel is told. Raises CudaError where memory that the form needs is not given."""
        problem, form = self.problem, self.form
        needs = {"bias": (form.bias, bias), "partial": (self.slices > 1, partial), "counters": (self.slices > 1, counters)}
        missing = [name for name, (needed, memory) in needs.items() if needed and memory is None]
        if missing or len(others) != len(problem.others):
            raise CudaError(f"product: {missing or f'{len(others)} other matrices'}, need memory for all that {form.name} reads")
        given = {"x": x, "w": w, "y": y, "bias": bias, "partial": partial, "counters": counters}
        given |= {f"r{n}": memory for n, memory in enumerate(others)}
        made = Descriptor(**{name: memory.address for name, memory in given.items() if memory is not None})
        made.m, made.n, made.k = problem.m, problem.n, problem.k
        made.x_stride, made.w_stride, made.y_stride = problem.strides
        for n, stride in enumerate(problem.others):
            setattr(made, f"r{n}_stride", stride)
        made.chunks, made.slices, made.steps = self.chunks, self.slices, self.steps
        made.slice_steps = -(-self.steps // self.slices)
        made.set_divisor("tiles", self.tiles[0] * self.tiles[1])
        made.set_divisor("columns", self.tiles[1])
        if problem.window is not None:
            describe_window(made, problem.window)
        return made


def describe_window(descriptor: Descriptor, window: Window) -> None:
    """Write what a kernel is told of a window into a descriptor."""
    descriptor.height, descriptor.width = window.height, window.width
    descriptor.stride_height, descriptor.stride_width = window.strides
    descriptor.pad_top, descriptor.pad_left = window.padding[:2]
    descriptor.dilation_height, descriptor.dilation_width = window.dilations
    descriptor.set_divisor("channels", window.channels)
    descriptor.set_divisor("kernel_width", window.kernel[1])
    descriptor.set_divisor("out_width", window.out[1])
    descriptor.set_divisor("out_pixels", window.out[0] * window.out[1])
