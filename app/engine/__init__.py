"""What computes requests: batches, queues, a budget of cores, and the processes that models run in."""

from app.engine.batching import InferOptions, Outcome
from app.engine.calls import Calls
from app.engine.lane import rows_of
from app.engine.port import Engine

__all__ = ["Calls", "Engine", "InferOptions", "Outcome", "rows_of"]
