"""LinearAttention: a matrix of memory for each head, which every token decays, corrects, writes to and reads.

    S = exp(decay) · S;  u = beta · (v - Sᵀk) or v;  S = S + k ⊗ u;  y = scale · Sᵀq

The update rule says which steps there are: "linear" has the last two, "gated" decays too, "delta" corrects what the memory
holds for the key (arXiv:2406.06484), and "gated_delta" does both (arXiv:2412.06464).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.batch_axis import Application, first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single
from kernels.operands import one_dtype, one_of
from kernels.record import record
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES
from kernels.spec import FLOATS, Array, Spec

_RULES = ("linear", "gated", "delta", "gated_delta")


@record
class _Sizes:
    """Sizes: batch, tokens, heads of queries and of keys and values, length of a key and of a value."""

    batch: int
    tokens: int
    q_heads: int
    heads: int
    key: int
    value: int

    @property
    def state(self) -> tuple[int, int, int, int]:
        """Shape of the memory."""
        return self.batch, self.heads, self.key, self.value


def _sizes(query: Spec, key: Spec, value: Spec, q_heads: int, heads: int) -> _Sizes:
    """Return the sizes. Raises ShapeError, AttributeValueError where they do not fit one another."""
    if not query.rank == key.rank == value.rank == 3 or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ShapeError(f"LinearAttention: query is {query}, key is {key}, value is {value}, need (batch, tokens, width) each")
    if heads < 1 or q_heads < 1 or q_heads % heads:
        raise AttributeValueError(f"LinearAttention: {q_heads} query heads, {heads} heads, need a multiple of at least one")
    widths = query.shape[2], key.shape[2], value.shape[2]
    if widths[0] % q_heads or widths[1] % heads or widths[2] % heads or widths[0] // q_heads != widths[1] // heads:
        raise ShapeError(
            f"LinearAttention: widths {widths} of query, key and value in {q_heads}, {heads} and {heads} heads, need whole "
            "heads, and keys as long as queries"
        )
    return _Sizes(query.shape[0], query.shape[1], q_heads, heads, widths[1] // heads, widths[2] // heads)


def infer(
    query: Spec,
    key: Spec,
    value: Spec,
    past_state: Spec | None = None,
    decay: Spec | None = None,
    beta: Spec | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Spec, Spec]:
    """The results (batch, tokens, query heads · value length), and the memory (batch, heads, key length, value length)."""
    one_of("LinearAttention: attribute update_rule", update_rule, _RULES)
    require_dtype("LinearAttention: query", query, FLOATS)
    one_dtype("LinearAttention", query, key, value, *(gate for gate in (decay, beta) if gate is not None))
    n = _sizes(query, key, value, q_num_heads, kv_num_heads)
    _check_gate("decay", decay, "gated" in update_rule, update_rule, n, (n.heads, n.heads * n.key))
    _check_gate("beta", beta, "delta" in update_rule, update_rule, n, (n.heads, 1))
    if past_state is not None:
        require_dtype("LinearAttention: past_state", past_state, FLOATS)
        if past_state.shape != n.state:
            raise ShapeError(f"LinearAttention: past_state is {past_state}, need {list(n.state)}")
    held = query.dtype if past_state is None else past_state.dtype
    return Spec((n.batch, n.tokens, n.q_heads * n.value), query.dtype), Spec(n.state, held)


def _check_gate(name: str, gate: Spec | None, needed: bool, rule: str, n: _Sizes, widths: tuple[int, int]) -> None:
    if needed != (gate is not None):
        wanted = f"{[n.batch, n.tokens, widths[0]]}" if needed else "none"
        raise ShapeError(f"LinearAttention: {name} is {gate}, need {wanted} for update_rule {rule!r}")
    if gate is not None and gate.shape not in [(n.batch, n.tokens, width) for width in widths]:
        raise ShapeError(
            f"LinearAttention: {name} is {gate}, need {[n.batch, n.tokens]} and a width of {widths[0]} or {widths[1]}"
        )


def cost(
    out: tuple[Spec, ...],
    query: Spec,
    key: Spec,
    value: Spec,
    past_state: Spec | None = None,
    decay: Spec | None = None,
    beta: Spec | None = None,
    **attrs: Any,
) -> Cost:
    """MACs per token: the memory once for each head to write it, once more to correct, once for each query head to read it.

    Others: one per element of the memory and per decay to fade it, 2 per value to correct it, one per result to scale it.
    """
    n = _sizes(query, key, value, attrs["q_num_heads"], attrs["kv_num_heads"])
    steps, cell = n.batch * n.tokens, n.key * n.value
    corrects = 0 if beta is None else 1
    fades = 0 if decay is None else steps * n.heads * cell + decay.elements
    others = fades + 2 * corrects * steps * n.heads * n.value + steps * n.q_heads * n.value
    return Cost(macs=steps * cell * (n.heads * (1 + corrects) + n.q_heads), other_flops=others)


def scratch_bytes(out: tuple[Spec, ...], query: Spec, key: Spec, value: Spec, *others: Spec | None, **attrs: Any) -> int:
    """The memory six times in the precision that is computed in, and all inputs and outputs widened, turned and exponentiated."""
    itemsize = max(query.dtype.itemsize, 4)
    moved = sum(spec.elements for spec in (*out, query, key, value, *others) if spec is not None)
    return FIXED_BYTES + itemsize * (6 * out[1].elements + 3 * moved)


def _heads(x: Array, heads: int) -> Array:
    """(tokens, batch, heads, length) of (batch, tokens, heads · length)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 0, 2, 3)


@in_single
def run(
    out: tuple[Array | None, ...],
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float,
    **attrs: Any,
) -> None:
    """Token by token, all heads of the batch at once."""
    y, present = (*out, None)[:2]
    heads, length = kv_num_heads, key.shape[2] // kv_num_heads
    queries, keys, values = _heads(query, q_num_heads), _heads(key, heads), _heads(value, heads)
    fading = None if decay is None else np.exp(_heads(decay, heads))
    rates = None if beta is None else _heads(beta, beta.shape[2])
    shape = (len(query), heads, length, value.shape[2] // heads)
    state = np.zeros(shape, query.dtype) if past_state is None else past_state.astype(query.dtype)
    factor = query.dtype.type(scale or 1 / math.sqrt(max(length, 1)))
    results = np.empty((len(queries), len(query), q_num_heads, shape[3]), query.dtype)
    for token in range(len(queries)):
        k, update = keys[token], values[token]
        if fading is not None:
            state *= fading[token][..., None]
        if rates is not None:
            update = rates[token] * (update - np.matmul(k[..., None, :], state)[..., 0, :])
        state += k[..., :, None] * update[..., None, :]
        grouped = queries[token].reshape(len(query), heads, q_num_heads // heads, length)
        results[token] = (np.matmul(grouped, state) * factor).reshape(results.shape[1:])
    if y is not None:
        np.copyto(_heads(y, q_num_heads), results)
    if present is not None:
        np.copyto(present, state, casting="unsafe")


def mixes_rows(call: Application) -> str:
    """Every row has its own memory, which the batch must hold too."""
    if reason := first_input_has_rows(call):
        return reason
    free = [operand for operand in call.inputs if operand is not None and not operand.is_rows]
    return f"{free[0].name!r} holds no rows" if free else ""


_QKV = ((2, 3, 8), (2, 3, 8), (2, 3, 6))
_TWO = {"q_num_heads": 2, "kv_num_heads": 2}
LINEAR_ATTENTION = Op(
    "LinearAttention",
    infer,
    cost,
    (Kernel("tokens", run, scratch_bytes=scratch_bytes),),
    tolerance_eps=64,
    mixes_rows=mixes_rows,
    cases=(
        Case(
            "linear",
            inputs=_QKV,
            attrs={**_TWO, "update_rule": "linear"},
            outputs=2,
            cost=Cost(macs=6 * 12 * 4, other_flops=6 * 6),
        ),
        Case(
            "gated_delta",
            inputs=(*_QKV, (2, 2, 4, 3), (2, 3, 2), (2, 3, 2)),
            attrs=_TWO,
            outputs=2,
            cost=Cost(macs=6 * 12 * 6, other_flops=6 * 24 + 12 + 2 * 36 + 36),
        ),
        Case("gated_by_key", inputs=(*_QKV, None, (2, 3, 8)), attrs={**_TWO, "update_rule": "gated"}, outputs=2),
        Case("delta_one_rate", inputs=(*_QKV, None, None, (2, 3, 1)), attrs={**_TWO, "update_rule": "delta", "scale": 0.5}),
        Case(
            "grouped",
            inputs=((2, 3, 16), *_QKV[1:], (2, 2, 4, 3)),
            attrs={"q_num_heads": 4, "kv_num_heads": 2, "update_rule": "linear"},
            outputs=2,
        ),
        Case("no_tokens", inputs=((2, 0, 8), (2, 0, 8), (2, 0, 6)), attrs={**_TWO, "update_rule": "linear"}, outputs=2),
        Case("decay_missing", inputs=_QKV, attrs=_TWO, raises=ShapeError),
        Case("decay_unused", inputs=(*_QKV, None, (2, 3, 2)), attrs={**_TWO, "update_rule": "linear"}, raises=ShapeError),
        Case("beta_width", inputs=(*_QKV, None, None, (2, 3, 3)), attrs={**_TWO, "update_rule": "delta"}, raises=ShapeError),
        Case("state_shape", inputs=(*_QKV, (2, 2, 3, 3)), attrs={**_TWO, "update_rule": "linear"}, raises=ShapeError),
        Case("heads", inputs=_QKV, attrs={"q_num_heads": 3, "kv_num_heads": 2}, raises=AttributeValueError),
        Case("rule", inputs=_QKV, attrs={**_TWO, "update_rule": "other"}, raises=AttributeValueError),
    ),
)
