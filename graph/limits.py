"""The limits that a model must keep to when it is read, and the check by which other threads end such work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self

from kernels.record import record

Check = Callable[[], None]  # called every few milliseconds of long work; ends the work by raising an EdgewiseError

PROTOBUF_BYTES: Final = 2**31 - 1  # the limit of protobuf itself


@record
class Limits:
    """Limits of a model. Reading raises LimitError with the value and the limit where one is exceeded.

    model_bytes: size of the file without external data. external_bytes: size of all external data.
    nodes: of all graphs together, after model-local functions are inlined. depth: nesting of subgraphs.
    function_depth: nesting of calls of model-local functions.
    tensor_elements, rank: of one tensor. list_length: elements of one attribute.
    text_length: characters of one name, or bytes of one text attribute.
    """

    model_bytes: int = PROTOBUF_BYTES
    external_bytes: int = 64 * 2**30
    nodes: int = 200_000
    depth: int = 16
    function_depth: int = 64
    tensor_elements: int = 2**33
    rank: int = 64
    list_length: int = 1 << 24
    text_length: int = 1 << 20

    @classmethod
    def of_bytes(cls, model_bytes: int) -> Self:
        """Return the limits of a model whose file and external data may each have `model_bytes`."""
        return cls(model_bytes=min(model_bytes, PROTOBUF_BYTES), external_bytes=model_bytes)


def go_on() -> None:
    """Let the work go on: the check of work that is not to be ended."""
