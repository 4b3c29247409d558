"""Small values between ranks through the store in which they met: with a time limit, and knowing who is silent."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

from marc_dist import comm
from marc_dist.config import LaunchError


class Exchange:
    """Star-shaped exchanges with rank 0 in the middle; without a process group each is the identity.

    A collective needs the network between GPUs, and waits for a rank that hangs without saying which. Here rank 0 does
    the work of all, one small message a rank: good for a few exchanges, not for every step.
    """

    def __init__(self) -> None:
        self.rank, self.world = comm.rank(), comm.world()
        self._store = comm.meeting_store()
        # every rank counts its exchanges: a second one in the same group must not read the first one's values
        self._name = f"exchange/{self._store.add(f'exchange/{self.rank}', 1)}" if self._store else ""
        self._turn = 0

    def collect(self, value: Any, limit_s: float) -> dict[int, Any]:
        """Every rank's value by rank, on rank 0; elsewhere nothing, without waiting.

        Args:
            value: what JSON can hold.
            limit_s: seconds after which rank 0 waits no longer; who is missing then is missing in the result.

        Raises:
            LaunchError: rank 0 is gone.
        """
        if self._store is None:
            return {0: json.loads(json.dumps(value))}
        self._turn += 1
        self._set(self.rank, value)
        if self.rank != 0:
            return {}
        deadline = time.monotonic() + limit_s
        keys = {source: self._key(source) for source in range(self.world)}
        return {
            source: json.loads(self._store.get(key))
            for source, key in keys.items()
            if self._has(key, deadline - time.monotonic())
        }

    def publish(self, value: Any, limit_s: float) -> Any:
        """Rank 0's value, on every rank.

        Raises:
            LaunchError: rank 0 says nothing for ``limit_s`` seconds, or is gone.
        """
        if self._store is None:
            return json.loads(json.dumps(value))
        self._turn += 1
        if self.rank == 0:
            self._set(0, value)
        began = time.monotonic()
        if not self._has(self._key(0), limit_s):
            if time.monotonic() - began < limit_s - 0.1:
                raise self._gone()
            raise LaunchError(f"rank {self.rank}: no word from rank 0 for {limit_s:g} s; see its log and its machine")
        return json.loads(self._store.get(self._key(0)))

    def _key(self, source: int) -> str:
        return f"{self._name}/{self._turn}/{source}"

    def _set(self, source: int, value: Any) -> None:
        try:
            self._store.set(self._key(source), json.dumps(value))
        except RuntimeError:
            raise self._gone() from None

    def _gone(self) -> LaunchError:
        return LaunchError(f"rank {self.rank}: rank 0 has ended; see its log and its machine")

    def _has(self, key: str, limit_s: float) -> bool:
        try:
            if limit_s <= 0:  # what lies there already counts
                return bool(self._store.check([key]))
            self._store.wait([key], timedelta(seconds=limit_s))
        except RuntimeError:  # not in time, or the store is gone with rank 0
            return False
        return True
