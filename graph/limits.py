"""How much a model may be: every bound that reading one enforces, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

PROTOBUF_BYTES: Final = 2**31 - 1  # protobuf itself stops there


@dataclass(frozen=True, slots=True)
class Limits:
    """A model past any of these is refused with LimitError, naming the value and the limit.

    model_bytes: the protobuf. external_bytes: all external data together.
    nodes: of all graphs together, after model-local functions are inlined. depth: subgraphs within subgraphs.
    function_depth: model-local functions that call one another.
    tensor_elements: of one tensor. rank: dimensions of one tensor. list_length: of one attribute.
    text_length: characters of one name, or bytes of one text attribute.
    """

    model_bytes: int = PROTOBUF_BYTES
    external_bytes: int = 64 * 2**30
    nodes: int = 200_000
    depth: int = 16
    function_depth: int = 64
    tensor_elements: int = 2**33
    rank: int = 64
    list_length: int = 1_000_000
    text_length: int = 1 << 20

    @classmethod
    def of_bytes(cls, model_bytes: int) -> Self:
        """Of a model whose file and external data may each be that large."""
        return cls(model_bytes=min(model_bytes, PROTOBUF_BYTES), external_bytes=model_bytes)
