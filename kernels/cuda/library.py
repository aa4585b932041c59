"""libcuda through ctypes: the library that comes with NVIDIA's driver, every call checked."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from kernels.cuda.errors import NoDriverError, error_of

NAME = "libcuda.so.1"


class Library:
    """The driver's functions by name. api: the loaded library, or an object with such functions."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises the error of `kernels.cuda.errors` that stands for what it returned."""
        if code := int(getattr(self.api, function)(*arguments)):
            raise error_of(function, code, self._text("cuGetErrorName", code), self._text("cuGetErrorString", code))

    def call_ignoring(self, function: str, *arguments: Any) -> None:
        """Call a function that frees something, and ignore what it returns.

        That would be the failure of earlier work, which the next checked call reports as well, or that the context is gone, and
        then what it held is gone too.
        """
        getattr(self.api, function)(*arguments)

    def _text(self, function: str, code: int) -> str:
        text = ctypes.c_char_p()
        failed = getattr(self.api, function)(code, ctypes.byref(text))
        return "unknown to this driver" if failed or text.value is None else text.value.decode()


@functools.cache
def load_library() -> Library:
    """Load libcuda and initialise it, once. Raises NoDriverError where this machine has no driver, or the driver sees no GPU."""
    try:
        library = Library(ctypes.CDLL(NAME))
    except OSError as error:
        raise NoDriverError(f"cuda: {NAME} is not here, need NVIDIA's driver ({error})") from None
    library.call("cuInit", 0)
    return library
