"""Encoders of ai.onnx.ml, between categories and numbers: LabelEncoder, CategoryMapper and OneHotEncoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernels.cost import moves
from kernels.errors import AttributeValueError, DTypeError, InvalidError
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import Scratch, for_each
from kernels.spec import FLOATS, INTS, STRING, Array, DType, Spec
from kernels.upgrades import constant_of

_INT64, _FLOAT = np.dtype(np.int64), np.dtype(np.float32)
_CATEGORIES = frozenset({STRING, _INT64})
_ENCODABLE = FLOATS | INTS | {STRING}
_KINDS: Mapping[str, DType] = {"floats": _FLOAT, "int64s": _INT64, "strings": STRING}
_DEFAULTS: Mapping[str, tuple[str, Any]] = {
    "floats": ("default_float", -0.0),
    "int64s": ("default_int64", -1),
    "strings": ("default_string", "_Unused"),
}
_BYTES_EACH = 160  # of an element and of a key, looked up by hash or by search


def mapped(x: Array, keys: Array, values: Array, default: Any, out: Array) -> None:
    """Write the value of the first key that equals each element, or the default. NaN equals NaN."""
    at = _positions(x.reshape(-1), keys)
    found = at >= 0
    made = np.full(at.shape, default, out.dtype)
    made[found] = values[at[found]]
    out.reshape(-1)[:] = made


def _is_nan(x: Array) -> Array:
    """Whether each element is NaN; integers never are."""
    return np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)


def _positions(x: Array, keys: Array) -> Array:
    """Return the position of the first key that equals each element, -1 where none does."""
    if keys.dtype == STRING:
        first = {key: at for at, key in reversed(list(enumerate(keys.tolist())))}
        return np.fromiter((first.get(text, -1) for text in x.tolist()), np.int64, x.size)
    if not keys.size:
        return np.full(x.shape, -1)
    known, first_at = np.unique(keys, return_index=True)
    at = np.minimum(np.searchsorted(known, x), len(known) - 1)
    equal = (known[at] == x) | (_is_nan(known[at]) & _is_nan(x))
    return np.where(equal, first_at[at], -1)


# LabelEncoder


def infer_label_encoder(
    x: Spec,
    *,
    keys_tensor: Array | None = None,
    values_tensor: Array | None = None,
    default_tensor: Array | None = None,
    classes_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Spec:
    """Shape of x, of the type of the values. Of `classes_strings`, numbers for strings or strings for numbers."""
    subject = "ai.onnx.ml.LabelEncoder"
    if keys_tensor is None or values_tensor is None or default_tensor is None:
        require_dtype(f"{subject}: x", x, _CATEGORIES)
        return Spec(x.shape, _INT64 if x.dtype == STRING else STRING)
    if keys_tensor.ndim != 1 or keys_tensor.shape != values_tensor.shape or default_tensor.size != 1:
        shapes = [list(array.shape) for array in (keys_tensor, values_tensor, default_tensor)]
        raise AttributeValueError(
            f"{subject}: keys, values and default are {shapes}, need as many values as keys, and one default"
        )
    if x.dtype != keys_tensor.dtype or x.dtype not in _ENCODABLE:
        raise DTypeError(f"{subject}: x is {x} and its keys are {keys_tensor.dtype.name}, need one type")
    if values_tensor.dtype != default_tensor.dtype or values_tensor.dtype not in _ENCODABLE:
        raise DTypeError(
            f"{subject}: values are {values_tensor.dtype.name}, the default {default_tensor.dtype.name}, need one type"
        )
    return Spec(x.shape, values_tensor.dtype)


def run_label_encoder(
    out: tuple[Array, ...],
    x: Array,
    *,
    keys_tensor: Array | None = None,
    values_tensor: Array | None = None,
    default_tensor: Array | None = None,
    classes_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> None:
    """Of equal keys the first counts."""
    if keys_tensor is not None and values_tensor is not None and default_tensor is not None:
        mapped(x, keys_tensor, values_tensor, default_tensor.item(), out[0])
        return
    names, numbers = np.array(classes_strings, STRING), np.arange(len(classes_strings))
    if x.dtype == STRING:
        mapped(x, names, numbers, default_int64, out[0])
    else:
        mapped(x, numbers, names, default_string, out[0])


def upgrade_label_encoder(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Tensors in place of the lists of each type."""
    attrs = dict(attrs)
    if "classes_strings" in attrs:
        return attrs, {}
    default = _default(attrs)
    for role in ("keys", "values"):
        lists = {kind: given for kind in _KINDS if (given := attrs.pop(f"{role}_{kind}", ()))}
        if len(lists) + (attrs.get(f"{role}_tensor") is not None) != 1:
            raise AttributeValueError(
                f"its {role} are of {len(lists)} types and {'a' if f'{role}_tensor' in attrs else 'no'} tensor, need one"
            )
        for kind, given in lists.items():
            attrs[f"{role}_tensor"] = _tensor(f"{role}_{kind}", given, _KINDS[kind])
            if role == "values" and attrs.get("default_tensor") is None:
                attrs["default_tensor"] = np.array([default[kind]], _KINDS[kind])
    values = attrs["values_tensor"]
    if attrs.get("default_tensor") is None and isinstance(values, np.ndarray):
        kind = "strings" if values.dtype == STRING else "floats" if values.dtype.kind == "f" else "int64s"
        attrs["default_tensor"] = np.array([default[kind]], values.dtype)
    return attrs, {}


def _default(attrs: dict[str, Any]) -> dict[str, Any]:
    """Take the defaults of each type. Raises AttributeValueError for one of another type."""
    found: dict[str, Any] = {}
    for kind, (name, value) in _DEFAULTS.items():
        found[kind] = attrs.pop(name, value)
        if not isinstance(found[kind], int | float if kind == "floats" else type(value)):
            raise AttributeValueError(f"attribute {name!r} is {str(found[kind])[:40]!r}, need a {type(value).__name__}")
    return found


def _tensor(name: str, given: Any, dtype: DType) -> Array:
    if dtype != STRING:
        return constant_of(name, given, dtype.name).reshape(-1)
    if not isinstance(given, tuple | list) or not all(isinstance(text, str) for text in given):
        raise AttributeValueError(f"attribute {name!r} is {str(given)[:40]!r}, need strings")
    return np.array(given, STRING)


# CategoryMapper


def infer_category_mapper(
    x: Spec,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Spec:
    """Shape of x; integers for strings, and strings for integers."""
    require_dtype("ai.onnx.ml.CategoryMapper: x", x, _CATEGORIES)
    if len(cats_int64s) != len(cats_strings):
        sizes = f"{len(cats_int64s)} integers and {len(cats_strings)} strings"
        raise AttributeValueError(f"ai.onnx.ml.CategoryMapper: its categories are {sizes}, need as many")
    return Spec(x.shape, _INT64 if x.dtype == STRING else STRING)


def run_category_mapper(
    out: tuple[Array, ...],
    x: Array,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> None:
    """Of equal categories the first counts."""
    numbers, names = np.array(cats_int64s, np.int64), np.array(cats_strings, STRING)
    if x.dtype == STRING:
        mapped(x, names, numbers, default_int64, out[0])
    else:
        mapped(x, numbers, names, default_string, out[0])


# OneHotEncoder


def infer_one_hot(x: Spec, *, cats_int64s: Sequence[int] = (), cats_strings: Sequence[str] = (), zeros: int = 1) -> Spec:
    """Float32, with one more axis: the categories."""
    subject = "ai.onnx.ml.OneHotEncoder"
    require_dtype(f"{subject}: x", x, _ENCODABLE)
    if bool(cats_int64s) == bool(cats_strings):
        sizes = f"{len(cats_int64s)} integers and {len(cats_strings)} strings"
        raise AttributeValueError(f"{subject}: its categories are {sizes}, need those of one type")
    if (x.dtype == STRING) != bool(cats_strings):
        raise DTypeError(f"{subject}: x is {x}, need {'strings' if cats_strings else 'numbers'} as its categories")
    return Spec((*x.shape, len(cats_int64s or cats_strings)), _FLOAT)


def run_one_hot(
    out: tuple[Array, ...], x: Array, *, cats_int64s: Sequence[int] = (), cats_strings: Sequence[str] = (), zeros: int = 1
) -> None:
    """1 at the last category that equals an element; floats are cut to integers. Others are refused without `zeros`."""
    categories = np.array(cats_strings, STRING) if cats_strings else np.array(cats_int64s, np.int64)
    flat = x.reshape(-1) if cats_strings else x.reshape(-1).astype(np.int64)
    at = _positions(flat, categories[::-1])
    if not zeros and (at < 0).any():
        unknown = flat[at < 0][0]
        raise InvalidError(
            f"ai.onnx.ml.OneHotEncoder: {str(unknown)[:40]!r} is none of its {len(categories)} categories, and zeros is 0"
        )
    out[0].fill(0)
    row = np.flatnonzero(at >= 0)
    out[0].reshape(-1, len(categories))[row, len(categories) - 1 - at[row]] = 1


def _scratch(*names: str) -> Scratch:
    """Return the formula of a lookup of each element among the categories that the attributes of these names hold."""

    def scratch_bytes(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> int:
        keys = sum(len(attrs[name]) for name in names if attrs[name] is not None and np.ndim(attrs[name]))
        return for_each(_BYTES_EACH)(out, x) + _BYTES_EACH * keys

    return scratch_bytes


def _words(*texts: str) -> Array:
    return np.array(texts, STRING)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_NUMBERED = {"keys_tensor": _words("a", "b", "a"), "values_tensor": _ints(1, 2, 3), "default_tensor": _ints(-7)}
_CATS = {"cats_int64s": (5, 6), "cats_strings": ("b", "a")}
_LABEL_ENCODER = (
    Case("strings_to_ints", inputs=(_words("b", "a", "z").reshape(3, 1),), attrs=_NUMBERED),
    Case(
        "floats_to_strings",
        inputs=(np.array([1, np.nan, 2], np.float32),),
        attrs={
            "keys_tensor": np.array([np.nan, 1], np.float32),
            "values_tensor": _words("nan", "one"),
            "default_tensor": _words("?"),
        },
    ),
    Case("class_numbers", inputs=(_words("b", "z"),), attrs={"classes_strings": ("a", "b")}),
    Case("class_names", inputs=(_ints(1, 7, -1),), attrs={"classes_strings": ("a", "b")}),
    Case("empty", inputs=(_words(),), attrs=_NUMBERED),
    Case("other_type", inputs=(_ints(1),), attrs=_NUMBERED, raises=DTypeError),
    Case("values_missing", inputs=(_words("a"),), attrs={**_NUMBERED, "values_tensor": _ints(1)}, raises=AttributeValueError),
)
_CATEGORY_MAPPER = (
    Case("to_ints", inputs=(_words("a", "z"),), attrs=_CATS),
    Case("to_strings", inputs=(_ints(5, 1),), attrs=_CATS),
    Case("floats", inputs=((2,),), attrs=_CATS, raises=DTypeError),
    Case("names_missing", inputs=(_ints(5),), attrs={"cats_int64s": (1,)}, raises=AttributeValueError),
)
_ONE_HOT = (
    Case("ints", inputs=(_ints(1, 3, 2).reshape(1, 3),), attrs={"cats_int64s": (1, 2, 1)}),
    Case("floats", inputs=(np.array([1.5, 2, -1], np.float32),), attrs={"cats_int64s": (1, 2)}),
    Case("strings", inputs=(_words("a", "b"),), attrs={"cats_strings": ("b", "a")}),
    Case("no_zeros", inputs=(_ints(1, 2),), attrs={"cats_int64s": (1, 2), "zeros": 0}),
    Case("empty", inputs=(_ints(),), attrs={"cats_int64s": (1, 2)}),
    Case("no_categories", inputs=(_ints(1),), raises=AttributeValueError),
    Case("numbers_of_strings", inputs=(_words("1"),), attrs={"cats_int64s": (1,)}, raises=DTypeError),
)
_LOOKUP = "keys_tensor", "classes_strings"

OPS = (
    Op(
        "ai.onnx.ml.LabelEncoder",
        infer_label_encoder,
        moves,
        (Kernel("lookup", run_label_encoder, scratch_bytes=_scratch(*_LOOKUP)),),
        elementwise=True,
        upgrade=upgrade_label_encoder,
        cases=_LABEL_ENCODER,
    ),
    Op(
        "ai.onnx.ml.CategoryMapper",
        infer_category_mapper,
        moves,
        (Kernel("lookup", run_category_mapper, scratch_bytes=_scratch("cats_int64s")),),
        elementwise=True,
        cases=_CATEGORY_MAPPER,
    ),
    Op(
        "ai.onnx.ml.OneHotEncoder",
        infer_one_hot,
        moves,
        (Kernel("lookup", run_one_hot, scratch_bytes=_scratch("cats_int64s", "cats_strings")),),
        cases=_ONE_HOT,
    ),
)
