"""Element types of the Open Inference Protocol, and the numpy dtypes that they stand for.

They are here, below `app.oip`, since model configurations name them too (`app.models.config`).
"""

from __future__ import annotations

import numpy as np

from kernels.spec import BFLOAT16, STRING, DType

DATATYPES: dict[str, DType] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind.upper()}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": STRING,
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: DType) -> str:
    """Return the protocol's name of a numpy dtype; the numpy name in capitals if the protocol has none."""
    return _NAMES.get(dtype, dtype.name.upper())
