"""What runs on a GPU and where it lies: contexts, memory, streams, events, modules, launches and graphs of launches.

Every object frees what it holds when it is closed, leaves its `with` block, or is collected. Calls that put work on a stream
return before it is done; its failure is raised by a later call (see `kernels.cuda.errors`).

Source: CUDA Driver API reference, https://docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.errors import CudaError, NoDriverError
from kernels.cuda.library import Library, load_library

# A kernel's argument: a number or structure of ctypes, or memory, of which the kernel gets the address.
Argument = Any
Array = NDArray[Any]


class Attribute(IntEnum):
    """Attributes of a device (CUdevice_attribute)."""

    THREADS_PER_BLOCK = 1
    WARP_THREADS = 10
    CLOCK_KHZ = 13
    PROCESSORS = 16
    INTEGRATED = 18
    MEMORY_CLOCK_KHZ = 36
    MEMORY_BUS_BITS = 37
    L2_BYTES = 38
    THREADS_PER_PROCESSOR = 39
    CAPABILITY_MAJOR = 75
    CAPABILITY_MINOR = 76
    SHARED_BYTES_PER_PROCESSOR = 81
    REGISTERS_PER_PROCESSOR = 82
    COOPERATIVE_LAUNCH = 95
    SHARED_BYTES_PER_BLOCK = 97  # what a kernel may ask for by `allow_shared`


class FunctionAttribute(IntEnum):
    """Attributes of a compiled kernel (CUfunction_attribute)."""

    THREADS_PER_BLOCK = 0
    SHARED_BYTES = 1
    LOCAL_BYTES = 3  # of a thread: spilled registers and arrays with indices that are not constant
    REGISTERS = 4
    DYNAMIC_SHARED_BYTES = 8


class Driver:
    """NVIDIA's driver on this machine. Raises NoDriverError where there is none."""

    def __init__(self, library: Library | None = None) -> None:
        self.library = library or load_library()

    @property
    def version(self) -> tuple[int, int]:
        """The newest version of CUDA that the driver supports."""
        number = ctypes.c_int()
        self.library.call("cuDriverGetVersion", ctypes.byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def devices(self) -> list[Device]:
        """Return the GPUs in the driver's order."""
        count = ctypes.c_int()
        self.library.call("cuDeviceGetCount", ctypes.byref(count))
        return [Device(self.library, ordinal) for ordinal in range(count.value)]

    def device(self, ordinal: int = 0) -> Device:
        """Return a GPU by its place in the driver's order. Raises NoDriverError where there are fewer."""
        devices = self.devices()
        if ordinal >= len(devices):
            raise NoDriverError(f"cuda: the driver sees {len(devices)} GPUs, need one numbered {ordinal}")
        return devices[ordinal]


class Device:
    """A GPU. capability: its compute capability, such as (9, 0)."""

    def __init__(self, library: Library, ordinal: int) -> None:
        self.library, self.ordinal = library, ordinal
        number = ctypes.c_int()
        library.call("cuDeviceGet", ctypes.byref(number), ordinal)
        self.number = number.value
        self.capability = (self.attribute(Attribute.CAPABILITY_MAJOR), self.attribute(Attribute.CAPABILITY_MINOR))

    @property
    def name(self) -> str:
        """The product's name."""
        text = ctypes.create_string_buffer(256)
        self.library.call("cuDeviceGetName", text, len(text), self.number)
        return text.value.decode()

    @property
    def memory_bytes(self) -> int:
        """The memory of the GPU, free or not."""
        n_bytes = ctypes.c_size_t()
        self.library.call("cuDeviceTotalMem_v2", ctypes.byref(n_bytes), self.number)
        return n_bytes.value

    def attribute(self, attribute: Attribute) -> int:
        """Return the value of an attribute."""
        value = ctypes.c_int()
        self.library.call("cuDeviceGetAttribute", ctypes.byref(value), int(attribute), self.number)
        return value.value

    def open(self) -> Context:
        """Open this process's context on the GPU."""
        return Context(self)


class _Resource:
    """Something that the driver holds for a context, and the call that frees it. A context that closes frees what is left."""

    def __init__(self, context: Context, free: str, handle: Any) -> None:
        self.context, self.handle = context, handle
        self._finalizer = weakref.finalize(self, _free, context.library, context.current, free, handle)
        context.held.add(self)

    def close(self) -> None:
        """Free it, now rather than when it is collected. Closing twice does nothing."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether it was freed."""
        return not self._finalizer.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _free(library: Library, context: ctypes.c_void_p, function: str, handle: Any) -> None:
    library.call_ignoring("cuCtxSetCurrent", context)
    library.call_ignoring(function, handle)


class Context:
    """The process's context on a GPU: its primary one, which other libraries in the process share.

    held: what the driver holds for it and is not freed yet.
    """

    def __init__(self, device: Device) -> None:
        self.device, self.library = device, device.library
        self.current = ctypes.c_void_p()
        self.held: weakref.WeakSet[_Resource] = weakref.WeakSet()
        self.library.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.current), device.number)
        self._finalizer = weakref.finalize(self, _free, self.library, self.current, "cuDevicePrimaryCtxRelease_v2", device.number)

    def close(self) -> None:
        """Free what it holds, and leave the context. Closing twice does nothing."""
        for resource in list(self.held):
            resource.close()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver in this context, on whichever thread."""
        self.library.call("cuCtxSetCurrent", self.current)
        self.library.call(function, *arguments)

    def synchronize(self) -> None:
        """Wait until all work of the context is done."""
        self.call("cuCtxSynchronize")

    def free_bytes(self) -> int:
        """Return how much of the GPU's memory is free."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, n_bytes: int) -> Memory:
        """Allocate memory of the GPU, aligned to 256 bytes, with undefined content. Raises DeviceMemoryError where it is full."""
        return Memory(self, n_bytes)

    def pinned(self, n_bytes: int) -> PinnedMemory:
        """Allocate memory of the host that copies run to and from while the host goes on."""
        return PinnedMemory(self, n_bytes)

    def stream(self) -> Stream:
        """Open a stream: work on it runs in order, beside that of other streams."""
        return Stream(self)

    def event(self) -> Event:
        """Make an event, which notes the time when a stream comes to it."""
        return Event(self)

    def load(self, ptx: bytes) -> Module:
        """Compile PTX for this GPU and load it. The driver keeps what it compiled in a cache of its own.

        Raises GpuUnsupportedError, with the compiler's message, where it refuses the PTX.
        """
        return Module(self, ptx)


class Memory(_Resource):
    """Memory of a GPU. address: where it begins, in the GPU's address space."""

    def __init__(self, context: Context, n_bytes: int) -> None:
        address = ctypes.c_uint64()
        context.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n_bytes))
        super().__init__(context, "cuMemFree_v2", address)
        self.n_bytes, self.address = n_bytes, address.value

    def write(self, array: Array, stream: Stream | None = None, *, at: int = 0) -> None:
        """Copy an array to `at` bytes from the beginning. On a stream, it must stay unchanged until the stream has come to it."""
        self._check(at, array.nbytes)
        if not array.flags.c_contiguous:
            raise CudaError(f"copy: strides {array.strides} of shape {array.shape}, need a contiguous array")
        self._copy("cuMemcpyHtoD", ctypes.c_uint64(self.address + at), ctypes.c_void_p(array.ctypes.data), array.nbytes, stream)

    def read(self, array: Array, stream: Stream | None = None, *, at: int = 0) -> Array:
        """Fill an array from `at` bytes from the beginning, and return it. On a stream, it is filled once that has come to it."""
        self._check(at, array.nbytes)
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise CudaError(f"copy: an array of shape {array.shape} that is not contiguous or not writable, need both")
        self._copy("cuMemcpyDtoH", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(self.address + at), array.nbytes, stream)
        return array

    def copy_from(self, other: Memory, stream: Stream | None = None, *, at: int = 0) -> None:
        """Copy all of other memory to `at` bytes from the beginning of this."""
        self._check(at, other.n_bytes)
        self._copy("cuMemcpyDtoD", ctypes.c_uint64(self.address + at), ctypes.c_uint64(other.address), other.n_bytes, stream)

    def fill(self, byte: int = 0, stream: Stream | None = None) -> None:
        """Set every byte."""
        arguments = (ctypes.c_uint64(self.address), ctypes.c_ubyte(byte), ctypes.c_size_t(self.n_bytes))
        if stream is None:
            self.context.call("cuMemsetD8_v2", *arguments)
        else:
            self.context.call("cuMemsetD8Async", *arguments, stream.handle)

    def _check(self, at: int, n_bytes: int) -> None:
        if at < 0 or at + n_bytes > self.n_bytes:
            raise CudaError(f"copy: bytes {at} to {at + n_bytes}, need a part of the {self.n_bytes} that are allocated")

    def _copy(self, function: str, to: Any, source: Any, n_bytes: int, stream: Stream | None) -> None:
        if stream is None:
            self.context.call(f"{function}_v2", to, source, ctypes.c_size_t(n_bytes))
        else:
            self.context.call(f"{function}Async_v2", to, source, ctypes.c_size_t(n_bytes), stream.handle)


class PinnedMemory(_Resource):
    """Memory of the host that does not move. array: its bytes, of no use after it was closed."""

    def __init__(self, context: Context, n_bytes: int) -> None:
        pointer = ctypes.c_void_p()
        context.call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(n_bytes), 0)
        super().__init__(context, "cuMemFreeHost", pointer)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(pointer.value or 0))


class Event(_Resource):
    """A point in the order of a stream."""

    def __init__(self, context: Context) -> None:
        handle = ctypes.c_void_p()
        context.call("cuEventCreate", ctypes.byref(handle), 0)
        super().__init__(context, "cuEventDestroy_v2", handle)

    def synchronize(self) -> None:
        """Wait until the stream that recorded the event has come to it."""
        self.context.call("cuEventSynchronize", self.handle)

    def elapsed_ns(self, since: Event) -> float:
        """Return the time since another event, of a resolution of 500 ns. Both must have been reached."""
        elapsed_ms = ctypes.c_float()
        self.context.call("cuEventElapsedTime", ctypes.byref(elapsed_ms), since.handle, self.handle)
        return elapsed_ms.value * 1e6


class Module(_Resource):
    """Compiled kernels on a GPU."""

    def __init__(self, context: Context, ptx: bytes) -> None:
        handle, log = ctypes.c_void_p(), ctypes.create_string_buffer(8192)
        options = (ctypes.c_int * 2)(5, 6)  # CU_JIT_ERROR_LOG_BUFFER and its size in bytes
        values = (ctypes.c_void_p * 2)(ctypes.cast(log, ctypes.c_void_p), ctypes.c_void_p(len(log)))
        image = ctypes.create_string_buffer(ptx)  # it ends in a zero byte
        try:
            context.call("cuModuleLoadDataEx", ctypes.byref(handle), image, 2, options, values)
        except Exception as error:
            if said := log.value.decode(errors="replace").strip():
                raise type(error)(f"{error}: {said}") from None
            raise
        super().__init__(context, "cuModuleUnload", handle)

    def function(self, name: str) -> Function:
        """Return a kernel by its name. Raises CudaError where the module has none of that name."""
        return Function(self, name)


class Function:
    """A compiled kernel, valid while its module is."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.handle = ctypes.c_void_p()
        module.context.call("cuModuleGetFunction", ctypes.byref(self.handle), module.handle, name.encode())

    def attribute(self, attribute: FunctionAttribute) -> int:
        """Return the value of an attribute."""
        value = ctypes.c_int()
        self.module.context.call("cuFuncGetAttribute", ctypes.byref(value), int(attribute), self.handle)
        return value.value

    def allow_shared(self, n_bytes: int) -> None:
        """Allow launches with that much dynamic shared memory a block; without this, 48 KiB."""
        attribute = int(FunctionAttribute.DYNAMIC_SHARED_BYTES)
        self.module.context.call("cuFuncSetAttribute", self.handle, attribute, ctypes.c_int(n_bytes))

    def blocks_per_processor(self, threads: int, shared_bytes: int = 0) -> int:
        """Return how many blocks of so many threads a processor holds at once."""
        count = ctypes.c_int()
        call = self.module.context.call
        call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            ctypes.byref(count),
            self.handle,
            threads,
            ctypes.c_size_t(shared_bytes),
        )
        return count.value


_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute whose value is a number; the union is 64 bytes long and aligned to 8."""

    _fields_ = (("kind", ctypes.c_int), ("_", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_char * 60))

    def __init__(self, kind: int, value: int) -> None:
        super().__init__(kind=kind, value=value)


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Stream(_Resource):
    """An order of work on a GPU."""

    def __init__(self, context: Context) -> None:
        handle = ctypes.c_void_p()
        context.call("cuStreamCreate", ctypes.byref(handle), 1)  # CU_STREAM_NON_BLOCKING: does not wait for the null stream
        super().__init__(context, "cuStreamDestroy_v2", handle)

    def synchronize(self) -> None:
        """Wait until the work on the stream is done. Raises GpuLostError where some of it failed."""
        self.context.call("cuStreamSynchronize", self.handle)

    def record(self, event: Event) -> None:
        """Have an event note when the stream comes to this point."""
        self.context.call("cuEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Have later work wait for an event that another stream recorded."""
        self.context.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def launch(
        self,
        function: Function,
        arguments: Sequence[Argument],
        *,
        blocks: int,
        threads: int,
        shared_bytes: int = 0,
        cooperative: bool = False,
        overlaps: bool = False,
    ) -> None:
        """Launch a kernel on `blocks` blocks of `threads` threads.

        cooperative: refuse the launch, with GpuUnsupportedError, unless all blocks run at once, as they must where they wait for
        one another. overlaps: let it start before the launch ahead has ended; the kernel waits for that itself.
        """
        values = [ctypes.c_uint64(value.address) if isinstance(value, Memory) else value for value in arguments]
        table = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values])
        shape = (function.handle, blocks, 1, 1, threads, 1, 1, shared_bytes, self.handle, table)
        if cooperative:
            self.context.call("cuLaunchCooperativeKernel", *shape)
        elif overlaps:
            attribute = _Attribute(_PROGRAMMATIC_SERIALIZATION, 1)
            config = _Config(blocks, 1, 1, threads, 1, 1, shared_bytes, self.handle, ctypes.pointer(attribute), 1)
            self.context.call("cuLaunchKernelEx", ctypes.byref(config), function.handle, table, None)
        else:
            self.context.call("cuLaunchKernel", *shape, None)

    @contextmanager
    def capture(self, graph: Graph | None = None) -> Iterator[Graph]:
        """Record what is put on the stream in the `with` block, instead of running it, into the graph that this gives.

        graph: one to record anew, with other arguments of the same kernels; where it is None, a new one.
        """
        graph = graph or Graph(self.context)
        self.context.call("cuStreamBeginCapture_v2", self.handle, 2)  # relaxed: memory and modules may be freed meanwhile
        recorded = ctypes.c_void_p()
        try:
            yield graph
        except BaseException:
            self.context.library.call_ignoring("cuStreamEndCapture", self.handle, ctypes.byref(recorded))
            if recorded.value:
                _Resource(self.context, "cuGraphDestroy", recorded).close()
            raise
        self.context.call("cuStreamEndCapture", self.handle, ctypes.byref(recorded))
        graph.build(recorded)


class Graph:
    """Work that was recorded, to be launched whole and as often as needed. The memory and modules that it uses must stay open."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._executable: _Resource | None = None

    def build(self, recorded: ctypes.c_void_p) -> None:
        """Make it executable, or change what it executes, and free the record. Launches that are under way stay as they were.

        Raises CudaError where it is executable and the record is of other work than changed arguments.
        """
        with _Resource(self.context, "cuGraphDestroy", recorded):
            if self._executable is not None:
                result = (ctypes.c_uint64 * 3)()  # CUgraphExecUpdateResultInfo: a result and two nodes
                self.context.call("cuGraphExecUpdate_v2", self._executable.handle, recorded, ctypes.byref(result))
                return
            handle = ctypes.c_void_p()
            self.context.call("cuGraphInstantiateWithFlags", ctypes.byref(handle), recorded, ctypes.c_uint64(0))
        self._executable = _Resource(self.context, "cuGraphExecDestroy", handle)

    def launch(self, stream: Stream) -> None:
        """Run the recorded work on a stream."""
        if self._executable is None:
            raise CudaError("graph: launched before its capture ended, need the end of the `with` block first")
        self.context.call("cuGraphLaunch", self._executable.handle, stream.handle)

    def close(self) -> None:
        """Free it, now rather than when it is collected."""
        if self._executable is not None:
            self._executable.close()
