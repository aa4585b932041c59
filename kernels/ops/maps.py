"""Maps of ai.onnx.ml, between which and tensors CastMap, DictVectorizer and ZipMap convert.

A map that a model takes is two inputs here, its keys and its values, side by side. The maps that ZipMap makes of scores are the
scores: column i is the value of label i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import moves
from kernels.errors import AttributeValueError, DTypeError, InvalidError, ShapeError
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import Scratch, for_each
from kernels.spec import STRING, Array, DType, Spec

_F32, _F64, _INT64 = (np.dtype(name) for name in ("float32", "float64", "int64"))
_KEYS, _VALUES = frozenset({_INT64, STRING}), frozenset({_F32, _F64, _INT64, STRING})
_MOST_COLUMNS = 1 << 24  # of a sparse map
_BYTES_EACH = 160  # of a key or an element, in a dict or a list
_CASTS: Mapping[str, tuple[DType, Callable[[Any], Any], Any]] = {  # type, conversion, and what a sparse map has elsewhere
    "TO_FLOAT": (_F32, float, 0.0),
    "TO_INT64": (_INT64, int, 0),
    "TO_STRING": (STRING, lambda value: value if isinstance(value, str) else f"{value:f}", "0.f"),
}


def _check_map(subject: str, keys: Spec, values: Spec) -> None:
    require_dtype(f"{subject}: keys", keys, _KEYS)
    require_dtype(f"{subject}: values", values, _VALUES)
    if keys.rank != 1 or keys.shape != values.shape:
        raise ShapeError(f"{subject}: keys are {keys} and values {values}, need a value for each key")


# DictVectorizer


def infer_dict_vectorizer(
    keys: Spec, values: Spec, *, int64_vocabulary: Sequence[int] = (), string_vocabulary: Sequence[str] = ()
) -> Spec:
    """(1, words of the vocabulary), of the type of the values."""
    subject = "ai.onnx.ml.DictVectorizer"
    _check_map(subject, keys, values)
    if bool(int64_vocabulary) == bool(string_vocabulary):
        sizes = f"{len(int64_vocabulary)} integers and {len(string_vocabulary)} strings"
        raise AttributeValueError(f"{subject}: its vocabulary has {sizes}, need those of one type")
    if (keys.dtype == STRING) != bool(string_vocabulary):
        raise DTypeError(f"{subject}: keys are {keys}, need the type of its vocabulary")
    return Spec((1, len(int64_vocabulary or string_vocabulary)), values.dtype)


def run_dict_vectorizer(
    out: tuple[Array, ...],
    keys: Array,
    values: Array,
    *,
    int64_vocabulary: Sequence[int] = (),
    string_vocabulary: Sequence[str] = (),
) -> None:
    """The value of each word, 0 or an empty string where it is no key. Keys that are no words are left out."""
    (y,) = out
    found = dict(zip(keys.tolist(), values.tolist(), strict=True))
    nothing = "" if y.dtype == STRING else 0
    y[0] = [found.get(word, nothing) for word in int64_vocabulary or string_vocabulary]


# CastMap


def infer_cast_map(keys: Spec, values: Spec, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Spec:
    """(1, keys), in the order of the keys; of a sparse map (1, max_map), each value at the place that its key says."""
    subject = "ai.onnx.ml.CastMap"
    _check_map(subject, keys, values)
    require_dtype(f"{subject}: keys", keys, frozenset({_INT64}))
    require_dtype(f"{subject}: values", values, frozenset({_F32, STRING}))
    one_of(f"{subject}: attribute cast_to", cast_to, _CASTS)
    one_of(f"{subject}: attribute map_form", map_form, ("DENSE", "SPARSE"))
    if map_form == "SPARSE" and not 1 <= max_map <= _MOST_COLUMNS:
        raise AttributeValueError(f"{subject}: attribute max_map is {max_map}, need 1 to {_MOST_COLUMNS}")
    return Spec((1, keys.elements if map_form == "DENSE" else max_map), _CASTS[cast_to][0])


def run_cast_map(
    out: tuple[Array, ...], keys: Array, values: Array, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1
) -> None:
    """Raises InvalidError for a text that is no number, and for keys that are negative, twice the same or beyond a sparse map."""
    (y,), (_, convert, nothing) = out, _CASTS[cast_to]
    order = np.argsort(keys, kind="stable")
    places = keys[order]
    if (places[1:] == places[:-1]).any():
        raise InvalidError(f"ai.onnx.ml.CastMap: key {places[:-1][places[1:] == places[:-1]][0]} is given twice, need each once")
    try:
        made = [convert(value) for value in values[order].tolist()]
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"ai.onnx.ml.CastMap: a value is no number, {error}") from None
    if map_form == "DENSE":
        y[0] = made
        return
    if places.size and not (places[0] >= 0 and places[-1] < max_map):
        raise InvalidError(f"ai.onnx.ml.CastMap: keys are from {places[0]} to {places[-1]}, need 0 to {max_map - 1}")
    y.fill(nothing)
    y[0, places] = made


# ZipMap


def infer_zip_map(x: Spec, *, classlabels_int64s: Sequence[int] = (), classlabels_strings: Sequence[str] = ()) -> Spec:
    """Shape and dtype of x, (n, classes): row i is map i, column j the value of label j."""
    subject = "ai.onnx.ml.ZipMap"
    require_dtype(f"{subject}: x", x, frozenset({_F32}))
    if bool(classlabels_int64s) == bool(classlabels_strings):
        sizes = f"{len(classlabels_int64s)} integers and {len(classlabels_strings)} strings"
        raise AttributeValueError(f"{subject}: its labels are {sizes}, need those of one type")
    classes = len(classlabels_int64s or classlabels_strings)
    if x.rank not in (1, 2) or x.shape[-1] != classes:
        raise ShapeError(f"{subject}: x is {x}, need (n, {classes}) as it has labels")
    return Spec(x.shape, x.dtype)


def run_zip_map(out: tuple[Array, ...], x: Array, **_: Any) -> None:
    """Copy the scores."""
    np.copyto(out[0], x)


def _scratch(*names: str) -> Scratch:
    """Return the formula of dicts and lists of all elements, and of the words of a vocabulary."""

    def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec, **attrs: Any) -> int:
        return for_each(_BYTES_EACH)(out, *inputs) + _BYTES_EACH * sum(len(attrs[name]) for name in names)

    return scratch_bytes


def _words(*texts: str) -> Array:
    return np.array(texts, STRING)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_DICT_VECTORIZER = (
    Case("strings", inputs=(_words("a", "z"), (2,)), attrs={"string_vocabulary": ("b", "a", "c")}),
    Case("integers", inputs=(_ints(1, 2), _words("p", "q")), attrs={"int64_vocabulary": (2, 1, 7)}),
    Case("values_missing", inputs=(_ints(1, 2), (3,)), attrs={"int64_vocabulary": (2,)}, raises=ShapeError),
    Case("no_vocabulary", inputs=(_ints(1), (1,)), raises=AttributeValueError),
    Case("other_keys", inputs=(_words("a"), (1,)), attrs={"int64_vocabulary": (2,)}, raises=DTypeError),
)
_CAST_MAP = (
    Case("dense", inputs=(_ints(3, 1), (2,))),
    Case("sparse", inputs=(_ints(3, 1), (2,)), attrs={"map_form": "SPARSE", "max_map": 5, "cast_to": "TO_INT64"}),
    Case("texts", inputs=(_ints(3, 1), np.array([1.5, 2.5], np.float32)), attrs={"cast_to": "TO_STRING"}),
    Case("numbers", inputs=(_ints(3, 1), _words("1.5", "2")), attrs={"map_form": "SPARSE", "max_map": 4}),
    Case("no_columns", inputs=(_ints(3, 1), (2,)), attrs={"map_form": "SPARSE", "max_map": 0}, raises=AttributeValueError),
    Case("string_keys", inputs=(_words("a"), (1,)), raises=DTypeError),
)
_ZIP_MAP = (
    Case("integers", inputs=((3, 2),), attrs={"classlabels_int64s": (5, 6)}),
    Case("strings", inputs=((2,),), attrs={"classlabels_strings": ("a", "b")}),
    Case("labels_missing", inputs=((3, 2),), attrs={"classlabels_int64s": (5,)}, raises=ShapeError),
    Case("no_labels", inputs=((3, 2),), raises=AttributeValueError),
)

OPS = (
    Op(
        "ai.onnx.ml.DictVectorizer",
        infer_dict_vectorizer,
        moves,
        (Kernel("dict", run_dict_vectorizer, scratch_bytes=_scratch("int64_vocabulary", "string_vocabulary")),),
        cases=_DICT_VECTORIZER,
    ),
    Op("ai.onnx.ml.CastMap", infer_cast_map, moves, (Kernel("sort", run_cast_map, scratch_bytes=_scratch()),), cases=_CAST_MAP),
    Op(
        "ai.onnx.ml.ZipMap",
        infer_zip_map,
        moves,
        (Kernel("copy", run_zip_map),),
        view=True,
        mixes_rows=only_first_input_has_rows,
        cases=_ZIP_MAP,
    ),
)
