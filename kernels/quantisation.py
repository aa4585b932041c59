"""What is known of quantised numbers: the integers that stand for them, their scales, and what the QLinear ops compute of them.

Rewrite passes ask it of every graph. It is no part of the operators' files, which a run imports for the ops of its model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from kernels.record import record
from kernels.spec import DType

WHOLE: dict[DType, tuple[int, int]] = {  # the integers that quantise, and their ranges
    **{np.dtype(name): (np.iinfo(name).min, np.iinfo(name).max) for name in ("int8", "uint8", "int16", "uint16")},
    np.dtype(ml_dtypes.int4): (-8, 7),
    np.dtype(ml_dtypes.uint4): (0, 15),
    np.dtype(ml_dtypes.int2): (-2, 1),
    np.dtype(ml_dtypes.uint2): (0, 3),
}
LEAST_SCALE = 2.0**-100  # native kernels take denormals for 0, which makes a difference of scales near them
_ALONG_ONE_AXIS = 13  # the opset from which Softmax works along one axis


@record
class Form:
    """What a QLinear op is made of.

    name: of the op in com.microsoft. inner: the ONNX op on real numbers. tensors: how many it reads, each followed by its scale
    and zero point, the scale and zero point of the result behind them; None: any number, behind those of the result.
    """

    name: str
    inner: str
    tensors: int | None

    def parts(self, inputs: Sequence[Any]) -> tuple[list[tuple[Any, Any, Any]], tuple[Any, Any]]:
        """Split inputs into a tensor with its scale and zero point each, and the scale and zero point of the result.

        inputs: specs, arrays or names. What is left out at the end is None.
        """
        first = 2 if self.tensors is None else 0
        count = -(-(len(inputs) - 2) // 3) if self.tensors is None else self.tensors
        padded = [*inputs, *[None] * (3 * count + 2 - len(inputs))]
        result = padded[:2] if self.tensors is None else padded[3 * count : 3 * count + 2]
        triples = [(padded[at], padded[at + 1], padded[at + 2]) for at in range(first, first + 3 * count, 3)]
        return triples, (result[0], result[1])


FORMS: Mapping[str, Form] = {
    f"com.microsoft.{form.name}": form
    for form in (
        Form("QLinearAdd", "Add", 2),
        Form("QLinearMul", "Mul", 2),
        Form("QLinearSigmoid", "Sigmoid", 1),
        Form("QLinearLeakyRelu", "LeakyRelu", 1),
        Form("QLinearSoftmax", "Softmax", 1),
        Form("QLinearAveragePool", "AveragePool", 1),
        Form("QLinearGlobalAveragePool", "GlobalAveragePool", 1),
        Form("QLinearConcat", "Concat", None),
    )
}


def real_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of the op on real numbers."""
    own = {name: value for name, value in attrs.items() if name not in ("channels_last", "opset")}
    return own | ({"coerce_2d": attrs["opset"] < _ALONG_ONE_AXIS} if "opset" in attrs else {})
