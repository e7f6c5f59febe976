"""AsyncBucket: a token bucket's `acquire` for coroutines."""

from __future__ import annotations

import asyncio
from typing import SupportsIndex, final

from ringbuf._meters.token_bucket import TokenBucket
from ringbuf._meters.token_wait import TokenWait

__all__ = ["AsyncBucket"]


@final
class AsyncBucket:
    """What `TokenBucket.aio` gives. It has no state of its own: threads and coroutines
    wait in one line.
    """

    __slots__ = ("_bucket",)

    def __init__(self, bucket: TokenBucket) -> None:
        self._bucket = bucket

    async def acquire(self, n: SupportsIndex = 1, timeout: float | None = None) -> bool:
        """As `TokenBucket.acquire`, while the event loop goes on. A task that is
        cancelled gives its place back.
        """
        wait = TokenWait(self._bucket, n, timeout)
        try:
            while (seconds := wait.step()) > 0:
                await asyncio.sleep(seconds)
        finally:
            wait.end()
        return seconds == 0

    def __repr__(self) -> str:
        return f"{self._bucket!r}.aio"
