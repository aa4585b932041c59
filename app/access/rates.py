"""Rate limits: a token bucket for each caller."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from app.errors import RequestError

MAX_BUCKETS = 20_000


class Rates:
    """Token buckets: each fills at its caller's rate and holds `burst_s` seconds of it. Event loop only."""

    def __init__(self, rate_per_s: float, burst_s: float = 2.0) -> None:
        self._rate_per_s = rate_per_s
        self._burst_s = burst_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, own_rate_per_s: float | None) -> None:
        """Count one request. Raises RequestError 429 if the bucket is empty.

        own_rate_per_s: of this caller; None = the default rate. A rate of 0 means no limit.
        """
        rate = self._rate_per_s if own_rate_per_s is None else own_rate_per_s
        if rate <= 0:
            return
        now, holds = time.monotonic(), max(1.0, rate * self._burst_s)
        tokens, since = self._buckets.get(caller, (holds, now))
        tokens = min(holds, tokens + (now - since) * rate)
        if tokens < 1:
            wait_s = math.ceil((1 - tokens) / rate)
            raise RequestError(429, f"API key: more than {rate:g} requests a second, its limit", {"Retry-After": str(wait_s)})
        self._buckets[caller] = (tokens - 1, now)
        self._buckets.move_to_end(caller)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
