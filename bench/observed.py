"""What the soak observes while it runs: replies, acknowledged writes, memory, and what must never happen."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil

from bench.cluster import Cluster

WIDTH = 16  # numbers in a row of the model `affine`


@dataclass
class Soak:
    """The running test and its observations.

    server: the service's process. end_s: when the load ends, by time.monotonic. seen: counts of replies by client and outcome.
    broken: count of each event that must never happen. jobs, plans: acknowledged ids. memory: (time in s, resident bytes).
    """

    port: int
    server: psutil.Process
    cluster: Cluster
    end_s: float
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    jobs: list[int] = field(default_factory=list)
    plans: set[str] = field(default_factory=set)
    health: dict[str, Any] = field(default_factory=dict)
    memory: list[tuple[float, int]] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def going(self) -> bool:
        """Return whether the load goes on."""
        return time.monotonic() < self.end_s

    def count(self, who: str, what: str) -> None:
        """Count an outcome of a client."""
        self.seen.setdefault(who, Counter())[what] += 1

    def note(
        self, who: str, reply: httpx.Response, right: Callable[[httpx.Response], bool], status: int = 200, full: int = 503
    ) -> None:
        """Count a reply as right, as refused for now, or as broken.

        right: checks the content of a reply with `status`. full: a status beside 503 that may refuse for now.
        """
        if reply.status_code == status and right(reply):
            self.count(who, "right")
        elif reply.status_code in (503, full) and "error" in reply.json():
            self.count(who, "refused")
        else:
            self.broken[f"{who}: {reply.status_code} {reply.text[:160]}"] += 1

    def rows(self) -> np.ndarray:
        """Return a random input of one to four rows."""
        count = self.random.choice((1, 1, 1, 2, 4))
        return np.array([[self.random.randrange(1000) for _ in range(WIDTH)] for _ in range(count)], np.float32)


Client = Callable[[Soak, httpx.AsyncClient], Awaitable[None]]
