"""The precisions in which products are computed: the words of kernels, strategies, plans, device profiles and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

# Of the factors. Products of tf32 (fp32 that GPUs round to 11 bits), bf16 and fp16 are added up in fp32, of int8 (signed or
# unsigned bytes) in int32.
Precision = Literal["fp32", "fp64", "tf32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Root mean square error of products of rounded factors, relative to the sum's: each factor is off by up to 2⁻⁹ of itself, evenly.
ROUNDING: Mapping[Precision, float] = {"bf16": 2.0**-9 * (2 / 3) ** 0.5}
