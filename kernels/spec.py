"""Specifications of tensors: shape, element type, and the value where it is known before the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kernels.errors import DataDependentError
from kernels.record import record
from kernels.size import Sizes, hint, is_symbolic, size_text

Array = npt.NDArray[Any]
DType = np.dtype[Any]

MAX_RANK = 64  # of a numpy array
MAX_BYTES = 2**63 - 1

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS: frozenset[DType] = frozenset({*map(np.dtype, ("float16", "float32", "float64")), BFLOAT16})
INTS: frozenset[DType] = frozenset(map(np.dtype, ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")))
BYTES: frozenset[DType] = frozenset(map(np.dtype, ("int8", "uint8")))
BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)
STRING = np.dtype(object)  # ONNX strings: numpy object arrays of str

# ONNX's element type numbers (TensorProto.DataType); the sub-byte and 8-bit float types hold one element a byte here
_ELEMENT_NAMES = (
    "float32 uint8 int8 uint16 int16 int32 int64 object bool float16 float64 uint32 uint64 complex64 complex128 bfloat16 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn float8_e8m0fnu uint2 int2 "
    "float6_e2m3fn float6_e3m2fn"
)
ELEMENT_TYPES: Mapping[int, DType] = MappingProxyType(
    {code: np.dtype(getattr(ml_dtypes, name, name)) for code, name in enumerate(_ELEMENT_NAMES.split(), 1)}
)
ELEMENT_CODES: Mapping[DType, int] = MappingProxyType({dtype: code for code, dtype in ELEMENT_TYPES.items()})

BYTE_BITS = 8

_SHORT_NAMES = {"float": "f", "uint": "u", "int": "i", "bfloat": "bf", "complex": "c"}


class SizeArray(np.ndarray[Any, np.dtype[Any]]):
    """An int64 tensor some of whose elements are sizes that depend on symbols (`kernels.size`): a numpy array of objects."""


def size_array(sizes: Any) -> Array:
    """Return whole numbers, nested in lists or in an array, as an int64 array; as a `SizeArray` where some depend on symbols."""
    objects = np.array(sizes, object)
    if any(is_symbolic(size) for size in objects.flat):
        return objects.view(SizeArray)
    return objects.astype(np.int64)


def fixed_array(array: Array) -> Array:
    """Return an array of plain numbers; symbols of a `SizeArray` are guarded to have the values of their hints."""
    return np.asarray(array).astype(np.int64) if isinstance(array, SizeArray) else array


def hinted_array(array: Array | None) -> Array | None:
    """Return an array with the hints of symbols as plain numbers."""
    return np.array([hint(size) for size in array.flat], np.int64).reshape(array.shape) if isinstance(array, SizeArray) else array


def bound_array(array: Array, sizes: Sizes) -> Array:
    """Return an array with values for the sizes in it."""
    return np.array(sizes.all(array.flat), np.int64).reshape(array.shape) if isinstance(array, SizeArray) else array


@record
class Spec:
    """Shape and element type of a tensor, and its value where that is known before the run.

    Specs are equal where shapes and dtypes are; values do not count, since plans and caches are keyed by shapes.
    """

    shape: tuple[int, ...]
    dtype: DType
    value: Array | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(array: Array) -> Spec:
        """Describe an array, keeping it as the known value."""
        return Spec(array.shape, _INT64 if isinstance(array, SizeArray) else array.dtype, array)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def elements(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense array of this spec."""
        return self.elements * self.dtype.itemsize

    @property
    def hides_its_size(self) -> bool:
        """Whether no array can have this shape, though its bytes are few: (0, 2⁶², 2⁶²), or 65 times 1."""
        if self.rank > MAX_RANK:
            return True
        return 0 in self.shape and math.prod(size for size in self.shape if size) * self.dtype.itemsize > MAX_BYTES

    def known(self, subject: str) -> Array:
        """Return the value. Raises DataDependentError where it is unknown, since an output shape depends on it."""
        if self.value is None:
            raise DataDependentError(f"{subject}: its value is only known at run time, and the output shape needs it")
        return self.value

    def with_value(self, value: Array | None) -> Spec:
        """Return a spec of equal shape and dtype with another value."""
        return Spec(self.shape, self.dtype, value)

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{','.join(map(size_text, self.shape))}]"


def element_bits(dtype: DType) -> int:
    """Return the bits of an element: the types below a byte lie one in a byte in memory, but hold fewer bits."""
    found = re.match(r"(?:u?int|float)([246])(?!\d)", dtype.name)
    return int(found[1]) if found else BYTE_BITS * dtype.itemsize


def dtype_name(dtype: DType) -> str:
    """Short name of an element type: f32, bf16, i64, u8, f8_e4m3fn, bool, str; of containers (`kernels.containers`) seq(f32)."""
    if dtype.names is not None:
        return dtype.names[0]
    if dtype == STRING:
        return "str"
    if dtype == BOOL:
        return "bool"
    letters = dtype.name.rstrip("0123456789")
    if letters not in _SHORT_NAMES:  # the 8- and 4-bit floats, whose names say their layout
        return dtype.name.replace("float", "f", 1)
    return _SHORT_NAMES[letters] + dtype.name[len(letters) :]
