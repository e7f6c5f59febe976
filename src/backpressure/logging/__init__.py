"""Logging through a buffer: BufferHandler takes the place of QueueHandler,
BufferListener that of QueueListener.

    handler = BufferHandler(sink="app.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)

What a QueueHandler does not promise: memory is bounded; a call never waits longer than
`timeout`, which is 0; what was refused is counted by reason (`BufferHandler.refused`,
and in `buffer.stats()`); a sink that fails gets its lines later, in order. A record
that was accepted is in the buffer when the logging call returns.

Records are formatted in the thread that logs, as with QueueHandler: arguments may
change later. Each level is a priority, so what is urgent is delivered first and has
room of its own. Lines keep their order within a level, and not between levels;
`priority=3` keeps one order for all.

Forks: a child gets a buffer of its own, in memory. What the parent had accepted stays
the parent's, as does its directory. The child's buffer is made, and its listener
started, when the child first logs.

Interpreter shutdown: `logging.shutdown` closes the handler, which delivers what is left
for up to `drain_timeout` seconds.

Thread safety: any number of threads. No lock is held while a record is formatted or
added.
"""

from __future__ import annotations

from backpressure.logging.handler import BufferHandler
from backpressure.logging.levels import priority_of
from backpressure.logging.listener import BufferListener

__all__ = ["BufferHandler", "BufferListener", "priority_of"]
