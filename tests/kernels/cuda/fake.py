"""A fake libcuda that computes nothing. It hands out handles, counts those that are open, and fails where a test asks for it."""

import ctypes
import itertools
from typing import Any

from kernels.cuda.driver import Attribute, Driver
from kernels.cuda.library import Library

H200 = {
    Attribute.CAPABILITY_MAJOR: 9,
    Attribute.CAPABILITY_MINOR: 0,
    Attribute.PROCESSORS: 132,
    Attribute.CLOCK_KHZ: 1_980_000,
    Attribute.MEMORY_CLOCK_KHZ: 3_201_000,
    Attribute.L2_BYTES: 60 << 20,
    Attribute.SHARED_BYTES_PER_BLOCK: 227 << 10,
}
NAMES = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    218: ("CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    720: ("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"),
}
_MAKES = {  # function that makes a handle -> the position of the handle among its arguments, and the function that frees it
    "cuDevicePrimaryCtxRetain": (0, "cuDevicePrimaryCtxRelease_v2"),
    "cuMemAlloc_v2": (0, "cuMemFree_v2"),
    "cuMemHostAlloc": (0, "cuMemFreeHost"),
    "cuStreamCreate": (0, "cuStreamDestroy_v2"),
    "cuEventCreate": (0, "cuEventDestroy_v2"),
    "cuModuleLoadDataEx": (0, "cuModuleUnload"),
    "cuStreamEndCapture": (1, "cuGraphDestroy"),
    "cuGraphInstantiateWithFlags": (0, "cuGraphExecDestroy"),
    "cuModuleGetFunction": (0, ""),
}


class FakeCuda:
    """The fake library.

    fails: result codes by function. calls: names of called functions, in order. open: numbers of handles that are not freed yet,
    by the function that frees them.
    """

    def __init__(self, devices: int = 1, **fails: int) -> None:
        self.devices, self.fails = devices, fails
        self.calls: list[str] = []
        self.arguments: dict[str, tuple[Any, ...]] = {}  # arguments of the last call of each function
        self.open: dict[str, int] = {}
        self.host: dict[int, Any] = {}  # buffers that stand for pinned memory, by address
        self._handles = itertools.count(0x1000, 0x100)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            self.arguments[name] = arguments
            if code := self.fails.get(name, 0):
                return code
            if name in _MAKES:
                self._make(name, arguments)
            elif name in self.open:
                self.open[name] -= 1
            else:
                getattr(self, f"_{name.removesuffix('_v2')}", lambda *_: None)(*arguments)
            return 0

        return function

    def _make(self, name: str, arguments: tuple[Any, ...]) -> None:
        place, free = _MAKES[name]
        handle = next(self._handles)
        if name == "cuMemHostAlloc":
            block = ctypes.create_string_buffer(arguments[1].value)
            handle = ctypes.addressof(block)
            self.host[handle] = block
        arguments[place]._obj.value = handle
        if free:
            self.open[free] = self.open.get(free, 0) + 1

    def cuGetErrorName(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = NAMES[code][0].encode() if code in NAMES else None
        return 0 if code in NAMES else 1

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = NAMES[code][1].encode() if code in NAMES else None
        return 0 if code in NAMES else 1

    def _cuDriverGetVersion(self, number: Any) -> None:  # noqa: N802
        number._obj.value = 13000

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self.devices

    def _cuDeviceGet(self, number: Any, ordinal: int) -> None:  # noqa: N802
        number._obj.value = ordinal

    def _cuDeviceGetName(self, text: Any, length: int, number: int) -> None:  # noqa: N802
        text.value = b"Fake H200"

    def _cuDeviceTotalMem(self, n_bytes: Any, number: int) -> None:  # noqa: N802
        n_bytes._obj.value = 141 << 30

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, number: int) -> None:  # noqa: N802
        value._obj.value = H200.get(Attribute(attribute), 0)

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:  # noqa: N802
        free._obj.value, total._obj.value = 1 << 30, 141 << 30

    def _cuEventElapsedTime(self, elapsed_ms: Any, start: Any, end: Any) -> None:  # noqa: N802
        elapsed_ms._obj.value = 1.5

    def _cuFuncGetAttribute(self, value: Any, attribute: int, function: Any) -> None:  # noqa: N802
        value._obj.value = 32

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, count: Any, *_: Any) -> None:  # noqa: N802
        count._obj.value = 2


def fake_driver(fake: FakeCuda) -> Driver:
    return Driver(Library(fake))
