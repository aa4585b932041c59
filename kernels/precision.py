"""The precisions in which products are computed: the words of kernels, strategies, plans, device profiles and pages."""

from __future__ import annotations

from typing import Literal, get_args

# Of the factors. Products of bf16 and fp16 are added up in fp32, of int8 (signed or unsigned bytes) in int32.
Precision = Literal["fp32", "fp64", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
