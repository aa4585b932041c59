"""Element types of the Open Inference Protocol, and the numpy dtypes that they stand for.

They are here, below `app.oip`, since model configurations name them too (`app.models.config`).
"""

from __future__ import annotations

import numpy as np

from kernels.containers import is_container
from kernels.spec import BFLOAT16, STRING, DType, dtype_name

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
    """Return the protocol's name of a dtype; where it has none the numpy name in capitals, or SEQ(F32) and the like."""
    return _NAMES.get(dtype) or (dtype_name(dtype) if is_container(dtype) else dtype.name).upper()
