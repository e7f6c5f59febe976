"""Which buffer's events are being sent here: by this thread, or by what it has started.

A sink's own library logs too. A record that it logs while it sends, put into the buffer
that is being sent, would be sent next, and logged again, for ever.

A thread is recognised, and so is code that inherits its context: coroutines, and
`asyncio.to_thread`. A thread that a sink starts by other means is not, unless the
interpreter hands the context on (`sys.flags.thread_inherit_context`).
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Final

__all__ = ["sending", "sent_buffer"]

_context: Final[ContextVar[str | None]] = ContextVar("forebay_sent_buffer", default=None)


class _Thread(threading.local):
    buffer_id: str | None = None


_thread: Final = _Thread()


def sent_buffer() -> str | None:
    """The id of the buffer whose events are being sent here, or None."""
    return _thread.buffer_id or _context.get()


class sending:  # noqa: N801 - reads as a function: with sending(buffer.id)
    """Within this, the events of that buffer are being sent. None: of no buffer."""

    __slots__ = ("_before", "_buffer_id", "_token")

    def __init__(self, buffer_id: str | None) -> None:
        self._buffer_id = buffer_id

    def __enter__(self) -> None:
        self._before = _thread.buffer_id
        self._token = _context.set(self._buffer_id)
        _thread.buffer_id = self._buffer_id

    def __exit__(self, *_: object) -> None:
        _thread.buffer_id = self._before
        _context.reset(self._token)
