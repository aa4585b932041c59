"""What is done to features of ai.onnx.ml before a model: Scaler, Imputer, Binarizer and Normalizer.

The offsets, scales and imputed values that ONNX writes as attributes are inputs here, as weights are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.expression import FLOAT, Draft, Term
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op
from kernels.scores import MODEL_INPUTS, rows_of, rows_stay_apart
from kernels.scratch import for_each
from kernels.spec import FLOATS, Array, Spec
from kernels.upgrades import constant_of

_LEAST_NORM = 1e-30
_NORMS = ("MAX", "L1", "L2")


def _check_vector(subject: str, name: str, spec: Spec, features: int) -> None:
    if spec.shape not in ((1,), (features,)):
        raise ShapeError(f"{subject}: {name} are {spec}, need 1 or {features} as x has features")


# Scaler


def infer_scaler(x: Spec, offset: Spec, scale: Spec) -> Spec:
    """Float32 of the shape of x, (n, features) or (features)."""
    subject = "ai.onnx.ml.Scaler"
    _, features = rows_of(subject, x)
    for name, spec in (("offsets", offset), ("scales", scale)):
        if spec.dtype not in FLOATS:
            raise DTypeError(f"{subject}: {name} are {spec}, need floats")
        _check_vector(subject, name, spec, features)
    return Spec(x.shape, FLOAT)


def run_scaler(out: tuple[Array, ...], x: Array, offset: Array, scale: Array) -> None:
    """(x - offset) · scale."""
    wide = np.result_type(x.dtype if x.dtype.kind == "f" else FLOAT, offset.dtype)
    np.copyto(out[0], (x.astype(wide) - offset) * scale, casting="same_kind")


def express_scaler(draft: Draft, x: Term, offset: Term, scale: Term) -> Term | None:
    """Express it for float32 and integers."""
    if (x.dtype.kind == "f" and x.dtype != FLOAT) or offset.dtype != FLOAT or scale.dtype != FLOAT:
        return None
    number = x if x.dtype == FLOAT else draft("cast", x, dtype=FLOAT)
    return draft("mul", draft("sub", number, offset), scale)


def upgrade_scaler(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Inputs in place of lists."""
    attrs = dict(attrs)
    neutral = {"offset": 0.0, "scale": 1.0}
    taken = [constant_of(name, attrs.pop(name, (number,)), "float32").reshape(-1) for name, number in neutral.items()]
    return attrs, dict(enumerate(taken, 1))


# Imputer


def infer_imputer(x: Spec, values: Spec, *, replaced_value_float: float = 0.0, replaced_value_int64: int = 0) -> Spec:
    """Shape and dtype of x, (n, features) or (features)."""
    subject = "ai.onnx.ml.Imputer"
    _, features = rows_of(subject, x)
    if values.dtype.kind not in ("f" if x.dtype.kind == "f" else "i"):
        raise DTypeError(f"{subject}: imputed values are {values}, need numbers of the kind of x, {x.dtype.name}")
    _check_vector(subject, "imputed values", values, features)
    return Spec(x.shape, x.dtype)


def run_imputer(
    out: tuple[Array, ...], x: Array, values: Array, *, replaced_value_float: float = 0.0, replaced_value_int64: int = 0
) -> None:
    """A value in the place of each number that is replaced, or of each NaN."""
    if x.dtype.kind != "f":
        replaced = x == replaced_value_int64
    else:
        replaced = np.isnan(x) if np.isnan(replaced_value_float) else x == x.dtype.type(replaced_value_float)
    np.copyto(out[0], np.where(replaced, values.astype(x.dtype), x))


def express_imputer(
    draft: Draft, x: Term, values: Term, *, replaced_value_float: float, replaced_value_int64: int
) -> Term | None:
    """Express it for float32."""
    if x.dtype != FLOAT or values.dtype != FLOAT:
        return None
    if np.isnan(replaced_value_float):
        return draft("where", draft("isnan", x), values, x)
    return draft("where", draft("eq", x, draft.constant(replaced_value_float, FLOAT)), values, x)


def upgrade_imputer(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """An input in place of the list of imputed values."""
    attrs = dict(attrs)
    floats = constant_of("imputed_value_floats", attrs.pop("imputed_value_floats", ()), "float32").reshape(-1)
    ints = constant_of("imputed_value_int64s", attrs.pop("imputed_value_int64s", ()), "int64").reshape(-1)
    if bool(floats.size) == bool(ints.size):
        raise AttributeValueError(f"its imputed values are {floats.size} floats and {ints.size} integers, need either")
    return attrs, {1: floats if floats.size else ints}


# Binarizer


def infer_binarizer(x: Spec, *, threshold: float = 0.0) -> Spec:
    """Shape and dtype of x."""
    if x.dtype not in MODEL_INPUTS:
        raise DTypeError(f"ai.onnx.ml.Binarizer: x is {x}, need one of {sorted(dtype.name for dtype in MODEL_INPUTS)}")
    return Spec(x.shape, x.dtype)


def run_binarizer(out: tuple[Array, ...], x: Array, *, threshold: float = 0.0) -> None:
    """1 where x is above the threshold, else 0."""
    np.copyto(out[0], x > threshold, casting="unsafe")


def express_binarizer(draft: Draft, x: Term, *, threshold: float) -> Term | None:
    """Express it for float32."""
    if x.dtype != FLOAT or np.float32(threshold) != threshold:
        return None
    above = draft("gt", x, draft.constant(threshold, FLOAT))
    return draft("where", above, draft.constant(1.0, FLOAT), draft.constant(0.0, FLOAT))


# Normalizer


def infer_normalizer(x: Spec, *, norm: str = "MAX") -> Spec:
    """Float32 of the shape of x, (n, features) or (features)."""
    rows_of("ai.onnx.ml.Normalizer", x)
    one_of("ai.onnx.ml.Normalizer: attribute norm", norm, _NORMS)
    return Spec(x.shape, FLOAT)


def cost_normalizer(out: tuple[Spec, ...], x: Spec, *, norm: str) -> Cost:
    """3 per element: magnitude (or square), maximum (or sum), divide."""
    return Cost(other_flops=3 * x.elements)


def run_normalizer(out: tuple[Array, ...], x: Array, *, norm: str = "MAX") -> None:
    """Divide each row by its norm. MAX is that of magnitudes, as in scikit-learn. A row of zeros stays."""
    rows = x.astype(x.dtype if x.dtype.kind == "f" else FLOAT)
    if not x.size:
        return
    if norm == "L2":
        size = np.sqrt(np.square(rows).sum(-1, keepdims=True))
    else:
        size = np.abs(rows).max(-1, keepdims=True) if norm == "MAX" else np.abs(rows).sum(-1, keepdims=True)
    np.copyto(out[0], rows / np.maximum(size, rows.dtype.type(_LEAST_NORM)), casting="same_kind")


_X = np.array([[-4, 1, 2], [0, 0, 0], [np.nan, 3, -7]], np.float32)
_INTS, _NAN = np.array([[1, -2, 0], [3, 0, 5]], np.int64), {"replaced_value_float": float("nan")}
_SCALER = (
    Case("by_feature", inputs=((4, 3), (3,), (3,)), cost=Cost(other_flops=24)),
    Case("all_alike", inputs=((4, 3), (1,), (1,))),
    Case("one_row", inputs=((3,), (3,), (1,))),
    Case("integers", inputs=(_INTS, (3,), (3,))),
    Case("doubles", inputs=(_X.astype(np.float64), (3,), (3,))),
    Case("empty", inputs=((0, 3), (3,), (3,)), cost=Cost()),
    Case("features_differ", inputs=((4, 3), (2,), (3,)), raises=ShapeError),
    Case("integer_scales", inputs=((4, 3), (3,), np.ones(3, np.int64)), raises=DTypeError),
)
_IMPUTER = (
    Case("nan", inputs=(_X, (3,)), attrs=_NAN, cost=Cost(other_flops=18)),
    Case("zeros", inputs=(_X, (1,))),
    Case("integers", inputs=(_INTS, np.array([7, 8, 9], np.int64)), attrs={"replaced_value_int64": -2}),
    Case("doubles", inputs=(_X.astype(np.float64), (3,)), attrs=_NAN),
    Case("one_row", inputs=(_X[2], (3,)), attrs=_NAN),
    Case("kinds_differ", inputs=(_INTS, (3,)), raises=DTypeError),
    Case("features_differ", inputs=((4, 3), (2,)), raises=ShapeError),
)
_BINARIZER = (
    Case("matrix", inputs=(np.nan_to_num(_X),), attrs={"threshold": 0.5}, cost=Cost(other_flops=9)),
    Case("integers", inputs=(_INTS,), attrs={"threshold": 0.5}),
    Case("bools", inputs=(np.ones(2, bool),), raises=DTypeError),
)
_NORMALIZER = (
    *(Case(norm.lower(), inputs=(np.nan_to_num(_X),), attrs={"norm": norm}, cost=Cost(other_flops=27)) for norm in _NORMS),
    Case("one_row", inputs=((5,),), attrs={"norm": "L2"}),
    Case("integers", inputs=(_INTS,), attrs={"norm": "L1"}),
    Case("doubles", inputs=(_X[:2].astype(np.float64),), attrs={"norm": "L2"}),
    Case("empty", inputs=((0, 3),), cost=Cost()),
    Case("no_such_norm", inputs=((2, 3),), attrs={"norm": "L3"}, raises=AttributeValueError),
    Case("volume", inputs=((2, 3, 4),), raises=ShapeError),
)

OPS = (
    Op(
        "ai.onnx.ml.Scaler",
        infer_scaler,
        per_element(2, "subtract, multiply"),
        (Kernel("ufuncs", run_scaler, scratch_bytes=for_each(32)),),
        elementwise=True,
        expression=express_scaler,
        upgrade=upgrade_scaler,
        cases=_SCALER,
    ),
    Op(
        "ai.onnx.ml.Imputer",
        infer_imputer,
        per_element(2, "compare, select"),
        (Kernel("where", run_imputer),),
        elementwise=True,
        expression=express_imputer,
        upgrade=upgrade_imputer,
        cases=_IMPUTER,
    ),
    Op(
        "ai.onnx.ml.Binarizer",
        infer_binarizer,
        per_element(1, "compare"),
        (Kernel("compare", run_binarizer),),
        elementwise=True,
        expression=express_binarizer,
        cases=_BINARIZER,
    ),
    Op(
        "ai.onnx.ml.Normalizer",
        infer_normalizer,
        cost_normalizer,
        (Kernel("rows", run_normalizer, scratch_bytes=for_each(32)),),
        mixes_rows=rows_stay_apart,
        cases=_NORMALIZER,
    ),
)
