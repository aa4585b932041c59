"""One attention as a kernel of `kernels.cuda.families.attention` gets it: checked, as a launch."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from kernels.cuda.emit.descriptor import check_sizes
from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.attention import ARRAYS, LEVELS, AttentionDescriptor, AttentionForm
from kernels.cuda.families.product_work import UNITS, Precision
from kernels.cuda.program import Launch
from kernels.record import record

LOG2_E = 1.4426950408889634

Steps = tuple[int, int, int]  # elements from an item of the batch, a head and a token to the next


@record
class Attention:
    """An attention. heads: of queries.  key_heads: of keys, a divisor of it.  depth: of a head.  q, k, v, y: how they lie.

    mask: the steps of the batch, head, query and key; 0 where it is one for all.  scale: of q·kᵀ, above 0.  offset: see
    `AttentionDescriptor`. Raises CudaError for sizes below 1 or too large, heads that do not divide, or another scale.
    """

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    depth: int
    q: Steps
    k: Steps
    v: Steps
    y: Steps
    scale: float
    mask: tuple[int, int, int, int] | None = None
    offset: int = 0

    @staticmethod
    def dense(
        batch: int, heads: int, queries: int, keys: int, depth: int, *, key_heads: int | None = None, scale: float | None = None
    ) -> Attention:
        """Return the attention of arrays (batch, tokens, heads, depth) that lie side by side. scale: 1 / √depth where None."""
        key_heads = key_heads or heads
        many, few = heads * depth, key_heads * depth
        long, short = (queries * many, depth, many), (keys * few, depth, few)
        return Attention(
            batch, heads, key_heads, queries, keys, depth, long, short, short, long, depth**-0.5 if scale is None else scale
        )

    def __post_init__(self) -> None:
        sizes = {"batch": self.batch, "heads": self.heads, "queries": self.queries, "keys": self.keys, "depth": self.depth}
        counts = {"q": (self.heads, self.queries), "k": (self.key_heads, self.keys)}
        counts |= {"v": counts["k"], "y": counts["q"]}
        for name, (heads, rows) in counts.items():
            steps: Steps = getattr(self, name)
            sizes[name] = (self.batch - 1) * steps[0] + (heads - 1) * steps[1] + rows * steps[2]
        if self.mask is not None:
            counts_of_mask = (self.batch, self.heads, self.queries, self.keys)
            sizes["mask"] = 1 + sum((count - 1) * step for count, step in zip(counts_of_mask, self.mask, strict=True))
        check_sizes("attention", sizes)
        if self.key_heads < 1 or self.heads % self.key_heads or not self.scale > 0:
            raise CudaError(
                f"attention: {self.heads} heads of queries for {self.key_heads} of keys, scale {self.scale}, need a multiple of "
                "the heads of keys, and a scale above 0"
            )

    def copy_bytes(self, precision: Precision) -> int:
        """Return the most bytes that a copy can move at once."""
        item_bytes = UNITS[precision][0].bits // 8
        return gcd(16, *(item_bytes * size for size in (self.depth, *self.q, *self.k, *self.v, *self.y)))

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, 2 a MAC, keys that a query does not see included."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.depth

    def launch(self, form: AttentionForm, **names: str) -> Launch:
        """Return the launch. names: of the values at q, k, v, y, and mask.

        Raises GpuUnsupportedError where the form's kernel does not serve this attention.
        """
        copy_bytes = self.copy_bytes(form.precision)
        if self.depth > form.depth or copy_bytes % form.copy_bytes or (form.mask is None) != (self.mask is None):
            need = f"heads of {self.depth}, copies of {copy_bytes} bytes, mask={self.mask is not None}"
            raise GpuUnsupportedError(f"attention: need {need}, the kernel is {form.name}")
        tiles = -(-self.queries // form.rows)
        told = AttentionDescriptor(queries=self.queries, keys=self.keys, depth=self.depth, offset=self.offset)
        told.chunks = tiles * self.batch * self.heads
        told.scale_log2, told.unscale = self.scale * LOG2_E, 1 / self.scale
        steps: dict[str, Sequence[int]] = {"q": self.q, "k": self.k, "v": self.v, "y": self.y}
        if self.mask is not None:
            steps["mask"], told.mask_key = self.mask[:3], self.mask[3]
        for name, each in steps.items():
            for level, step in zip(LEVELS, each, strict=True):
                setattr(told, f"{name}_{level}", step)
        told.set_divisor("tiles", tiles)
        told.set_divisor("heads", self.heads)
        told.set_divisor("group", self.heads // self.key_heads)
        needs = (*ARRAYS, *("mask",) * (self.mask is not None))
        return Launch.of(form, told, told.chunks, needs, names)
