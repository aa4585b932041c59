"""Compute references in float64, and run kernels over memory filled with poison, with their chunks out of order."""

import re
from typing import Any

import numpy as np

from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from tests.kernels.native.compiled import object_code
from tests.kernels.native.runner import run

PLAIN: Epilogue[Any] = Epilogue()
SPREAD = "spread"  # the function that takes a kernel's words as arguments
CALL = re.compile(r"^\s+((callq?|blr?)\s|(jmp|b)\s+[^.\s])", re.MULTILINE)  # a call of another function, in assembly


def place(image: Image, array: np.ndarray) -> np.ndarray:
    """Return memory of exactly the image's size that holds the array, with NaN where no pixel is."""
    memory = np.full(image.elements, np.nan, np.float32)
    image.store(array.astype(np.float32), memory)
    return memory


def seen(view: View, memory: np.ndarray) -> np.ndarray:
    """Return the numpy view of flat memory that a View describes."""
    strides = [stride * memory.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, strides)


def lay(view: View, array: np.ndarray) -> np.ndarray:
    """Return memory that holds the array at the view's places, with NaN everywhere else."""
    memory = np.full(view.span, np.nan, np.float32)
    seen(view, memory)[...] = array
    return memory


def assert_only_written(view: View, memory: np.ndarray) -> None:
    """Assert that memory outside of the view is still NaN. This overwrites the view's content."""
    seen(view, memory)[...] = np.nan
    assert np.isnan(memory).all()


def conv_reference(conv: Conv, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Compute a convolution in float64 by its definition, one kernel tap at a time."""
    n, _, height, width = x.shape
    (rows, columns), (sy, sx), (dy, dx) = conv.kernel, conv.strides, conv.dilations
    oh, ow = conv.y.height, conv.y.width
    bottom = max(0, (oh - 1) * sy + (rows - 1) * dy + 1 - conv.top - height)
    right = max(0, (ow - 1) * sx + (columns - 1) * dx + 1 - conv.left - width)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (conv.top, bottom), (conv.left, right)))
    out = np.zeros((n, conv.y.channels, oh, ow))
    groups = conv.y.channels // conv.within if conv.within else conv.groups
    cg, kg = conv.group_inputs, conv.y.channels // groups
    for g in range(groups):
        for r in range(rows):
            for s in range(columns):
                ys = slice(r * dy, r * dy + (oh - 1) * sy + 1, sy)
                xs = slice(s * dx, s * dx + (ow - 1) * sx + 1, sx)
                taken, taps = padded[:, g * cg : (g + 1) * cg, ys, xs], w[g * kg : (g + 1) * kg, :, r, s].astype(np.float64)
                out[:, g * kg : (g + 1) * kg] += np.einsum("nchw,kc->nkhw", taken, taps)
    return out if b is None else out + b.astype(np.float64)[None, :, None, None]


def run_kernel(kernel, isa, **arrays) -> None:
    """Compile a kernel and run its chunks one at a time, from the last to the third, then the first two in one call.

    arrays: arguments by name; a missing one is a null pointer. Scratch memory is poisoned before each call.
    """
    assert set(arrays) <= set(kernel.arguments)
    scratch = aligned(kernel.scratch_bytes + 128)
    given = {**arrays, **({"scratch": scratch} if "scratch" in kernel.arguments else {})}
    pointers = [given.get(name) for name in kernel.arguments] + [table.words for table in kernel.tables.values()]
    pointers.append(np.array(kernel.numbers, np.int64))
    together = min(2, kernel.chunks)
    chunks = [*((n, n + 1) for n in range(kernel.chunks - 1, together - 1, -1)), (0, together)]
    calls = [[*pointers, *chunk] for chunk in chunks]
    run(object_code(kernel.ir + spread_ir(kernel, isa), isa), isa, SPREAD, calls, scratch)
    assert (scratch[kernel.scratch_bytes :] == 0xFF).all()


class SharedCode:
    """Runs kernels in this process. Those of one name run the code that the first of them was compiled to.

    Called like `run_kernel`. code: of each kernel, by name.
    """

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}

    def __call__(self, kernel, isa, **arrays) -> None:
        if kernel.name not in self.code:
            self.code[kernel.name] = object_code(kernel.ir, isa)
        scratch = aligned(kernel.scratch_bytes + 128)
        given = [arrays.get(name) for name in kernel.arguments if name != "scratch"]
        assert kernel.arguments[len(given) :] in {(), ("scratch",)}
        given += [None] * (len(kernel.arguments) - len(given)) + [table.words for table in kernel.tables.values()]
        words = np.array([0 if array is None else array.ctypes.data for array in given] + [*kernel.numbers], np.int64)
        calls = [(words, scratch, chunk, chunk + 1) for chunk in reversed(range(kernel.chunks))]
        run(self.code[kernel.name], isa, kernel.name, calls, scratch)
        assert (scratch[kernel.scratch_bytes :] == 0xFF).all()


def spread_ir(kernel, isa) -> str:
    """A function that takes addresses as arguments of its own, puts them and the numbers into memory and calls the kernel.

    The last address is that of the numbers, so this code is the same for all of them.
    """
    addresses, numbers = len(kernel.arguments) + len(kernel.tables), len(kernel.numbers)
    moves = [(f"ptr %a{at}", at) for at in range(addresses)]
    lines = []
    for at in range(numbers):
        lines.append(f"  %n{at} = getelementptr i64, ptr %a{addresses}, i64 {at}\n  %w{at} = load i64, ptr %n{at}")
        moves.append((f"i64 %w{at}", addresses + at))
    lines += [f"  %p{at} = getelementptr i64, ptr %words, i64 {at}\n  store {word}, ptr %p{at}" for word, at in moves]
    scratch = f"%a{kernel.arguments.index('scratch')}" if "scratch" in kernel.arguments else "null"
    return "\n".join(
        (
            f"define void @{SPREAD}({''.join(f'ptr %a{at}, ' for at in range(addresses + 1))}i64 %begin, i64 %end) #0 {{",
            f"  %words = alloca [{addresses + numbers + 1} x i64], align 16",
            *lines,
            f"  call void @{kernel.name}(ptr %words, ptr {scratch}, i64 %begin, i64 %end)",
            "  ret void\n}\n",
        )
    )


def epilogue_operands(epilogue: Epilogue, exact: np.ndarray, rng) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return random operands of an epilogue by argument, each in its own memory, and the result of its binary steps.

    exact: the values that the epilogue is applied to. Steps of one argument are skipped: the caller has to apply them.
    """
    values, arrays = [exact], {}
    for name, image in zip(epilogue.arguments, epilogue.operands, strict=True):
        other = rng.uniform(0.5, 1.5, exact.shape).astype(np.float32)
        arrays[name] = place(image, other)
        values.append(other.astype(np.float64))
    for step in epilogue.expression.steps:
        given = [values[arg] for arg in step.args]
        values.append({"add": np.add, "mul": np.multiply, "sub": np.subtract}[step.op](*given) if len(given) == 2 else given[0])
    return arrays, values[-1] if epilogue.expression.steps else exact


def assert_close(got: np.ndarray, exact: np.ndarray, terms: int) -> None:
    """Assert that the error is no larger than rounding a sum of `terms` products can make it, for values of about 1."""
    tolerance = np.finfo(np.float32).eps * (4 + np.sqrt(terms)) * max(1.0, float(np.abs(exact).max()))
    assert not np.isnan(got).any()
    np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance)


F32_MAX = float(np.finfo(np.float32).max)


def everything(count=60_000):
    """Return floats of every exponent and both signs, with denormals, zeros and other special values."""
    bits = np.linspace(0, 0x7F7FFFFF, count, dtype=np.float64).astype(np.uint32).view(np.float32)
    ordinary = np.linspace(-110, 110, count, dtype=np.float32)
    corners = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -1.0, F32_MAX, -F32_MAX], np.float32)
    return np.concatenate([bits, -bits, ordinary, corners])


def ulp_error(got, exact):
    """Return the error in units in the last place (ULP) of the exact result."""
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = exact.astype(np.float32)
        spacing = np.spacing(np.abs(rounded)).astype(np.float64)
        spacing = np.where(np.isfinite(spacing), np.maximum(spacing, 2.0**-149), 2.0**104)
        same = (got == rounded) | (np.isnan(got) & np.isnan(exact))
        return np.where(same, 0.0, np.abs(got.astype(np.float64) - exact) / spacing)
