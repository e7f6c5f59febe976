"""Which buffer's events are being sent here: by this thread, or by what it has started.

A sink's own library logs too. A record that it logs while it sends, put into the buffer
that is being sent, would be sent next, and logged again, for ever.

A thread is recognised, and so is code that inherits its context: coroutines, and
`asyncio.to_thread`. A thread that a sink starts by other means is not, unless the
interpreter hands the context on (`sys.flags.thread_inherit_context`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def sending(buffer_id: str | None) -> Iterator[None]:
    """Within this, the events of that buffer are being sent. None: of no buffer."""
    before = _thread.buffer_id
    token = _context.set(buffer_id)
    _thread.buffer_id = buffer_id
    try:
        yield
    finally:
        _thread.buffer_id = before
        _context.reset(token)
