"""One product or convolution as a kernel of `kernels.cuda.families.product` gets it: checked, in chunks, as a descriptor."""

from __future__ import annotations

from math import gcd

from kernels.cuda.emit.descriptor import OTHERS, Descriptor, check_sizes, others_sizes
from kernels.cuda.emit.unit import ROW_BYTES
from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.product import Form, ProductDescriptor
from kernels.cuda.families.product_work import UNITS, Precision
from kernels.cuda.program import Launch
from kernels.record import record


@record
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


Steps = tuple[int, int]  # elements from an outer and from an inner item of a batch to the next


@record
class Batch:
    """Products of one size, outer × inner of them, such as images and heads. x, w, y, others: how far apart their matrices lie.

    A matrix that all items share has the step 0.
    """

    outer: int
    inner: int
    x: Steps
    w: Steps
    y: Steps
    others: tuple[Steps, ...] = ()

    @property
    def items(self) -> int:
        """How many products there are."""
        return self.outer * self.inner

    def extent(self, steps: Steps) -> int:
        """Return the offset of the last item's matrix."""
        return (self.outer - 1) * steps[0] + (self.inner - 1) * steps[1]


@record
class Problem:
    """A product: m rows, n columns, depth k. window: of a convolution, else None. batch: of many products of these sizes.

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
    batch: Batch | None = None

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
        sizes |= others_sizes(self.m, self.others)
        if batch := self.batch:
            sizes |= {"outer": batch.outer, "inner": batch.inner}
            if len(batch.others) != len(self.others):
                raise CudaError(f"product: batch steps of {len(batch.others)} other matrices, need {len(self.others)}")
            for name, steps in zip(("x", "w", "y", *OTHERS), (batch.x, batch.w, batch.y, *batch.others), strict=False):
                sizes[name] += batch.extent(steps)
        check_sizes("product", sizes)

    @property
    def strides(self) -> tuple[int, int, int]:
        """The strides of x, w and y."""
        x = self.k if self.window is None else self.window.channels
        return self.x_stride or x, self.w_stride or self.k, self.y_stride or self.n

    @property
    def flops(self) -> int:
        """Multiplications and additions, 2 a MAC."""
        return 2 * self.m * self.n * self.k * (self.batch.items if self.batch else 1)

    def copy_bytes(self, precision: Precision) -> int:
        """Return the most bytes that a copy to shared memory can move at once."""
        depth = self.k if self.window is None else self.window.channels
        item_bytes = UNITS[precision][0].bits // 8
        steps = (*self.batch.x, *self.batch.w) if self.batch else ()
        return gcd(16, *(item_bytes * size for size in (depth, self.k, *self.strides[:2], *steps)))

    def whole(self, precision: Precision) -> bool:
        """Return whether runs of 8 columns can go to memory whole."""
        item_bytes = UNITS[precision][0].bits // 8
        batch = self.batch
        steps = (*batch.y, *(step for other in batch.others for step in other)) if batch else ()
        return self.n % 8 == 0 and all(item_bytes * stride % 16 == 0 for stride in (self.strides[2], *self.others, *steps))


@record
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
        served = (
            form.windows == (problem.window is not None),
            form.batched == (problem.batch is not None),
            len(problem.others) == len(form.expression.operands) - 1,
        )
        aligned = problem.copy_bytes(form.precision) % form.copy_bytes == 0 and form.whole <= problem.whole(form.precision)
        if not (all(served) and aligned):
            need = f"copies of {problem.copy_bytes(form.precision)} bytes, whole={problem.whole(form.precision)}"
            raise GpuUnsupportedError(f"product: {problem}, need {need}, the kernel is {form.name}")
        steps = -(-problem.k * form.item_bytes // ROW_BYTES)
        if form.joins:
            if slices not in (1, form.cluster):
                raise GpuUnsupportedError(f"product: {slices} slices, need {form.cluster}, one for each block of a cluster")
            return Cut(form, problem, form.cluster)
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
        """Tiles × slices, of the whole batch."""
        return self.all_tiles * self.slices

    @property
    def all_tiles(self) -> int:
        """Tiles of the whole batch."""
        return self.tiles[0] * self.tiles[1] * (self.problem.batch.items if self.problem.batch else 1)

    @property
    def meets(self) -> bool:
        """Whether slices meet in the GPU's memory."""
        return self.slices > 1 and not self.form.joins

    @property
    def partial_bytes(self) -> int:
        """Memory in which slices meet."""
        return 4 * self.chunks * self.form.tile.rows * self.form.tile.columns if self.meets else 0

    @property
    def counter_bytes(self) -> int:
        """Memory of counters, which is 0 before the first launch, and is so again after each."""
        return 4 * self.all_tiles if self.meets else 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The addresses that the kernel reads."""
        bias, slices = ("bias",) * self.form.bias, ("partial", "counters") * self.meets
        return ("x", "w", "y", *bias, *OTHERS[: len(self.problem.others)], *slices)

    def launch(self, **names: str) -> Launch:
        """Return the launch. names: of the values at `needs`. Raises CudaError for others."""
        return Launch.of(self.form, self._descriptor(), self.chunks, self.needs, names)

    def _descriptor(self) -> ProductDescriptor:
        problem, made = self.problem, ProductDescriptor()
        made.m, made.n, made.k = problem.m, problem.n, problem.k
        made.x_stride, made.w_stride, made.y_stride = problem.strides
        for name, stride in zip(OTHERS, problem.others, strict=False):
            setattr(made, f"{name}_stride", stride)
        made.chunks, made.slices, made.steps = self.chunks, self.slices, self.steps
        made.slice_steps = -(-self.steps // self.slices)
        made.set_divisor("tiles", self.tiles[0] * self.tiles[1])
        made.set_divisor("columns", self.tiles[1])
        if problem.window is not None:
            describe_window(made, problem.window)
        if problem.batch is not None:
            made.set_divisor("item_chunks", self.tiles[0] * self.tiles[1] * self.slices)
            made.set_divisor("inner", problem.batch.inner)
            steps = {"x": problem.batch.x, "w": problem.batch.w, "y": problem.batch.y}
            for name, (outer, inner) in (steps | dict(zip(OTHERS, problem.batch.others, strict=False))).items():
                setattr(made, f"{name}_outer", outer)
                setattr(made, f"{name}_inner", inner)
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
