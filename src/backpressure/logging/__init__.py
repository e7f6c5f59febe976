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
change later. A sink gets the lines in the order in which they were logged. With
`priority="level"` each level is a priority instead: what is urgent is delivered first
and has room of its own, and lines keep their order within a level only.

Feedback: what is logged while a batch is being sent, by the thread that sends or by
code that inherits its context, is not put into the buffer that is being sent, but
counted (`refused["feedback"]`): a sink's HTTP library would feed itself for ever. A
handler that has met such records also takes none that were logged while another
buffer's batch was being sent, so that two of them do not feed each other. A thread that
a sink starts by itself is not recognised: keep its logger from this handler, by a level
or a filter.

Re-entrancy: a `__del__` or a signal's handler may log while its own thread is logging.
Its record is added before the interrupted call returns.

Forks: a child gets a buffer of its own, in memory. What the parent had accepted stays
the parent's, as does its directory. The child's buffer is made, and its listener
started, when the child first logs; where that differs from what the parent has (no
directory, no consumer) a warning says so. The sinks of this package open their file or
connection anew in the child; a sink of one's own has to see to that itself.

Interpreter shutdown: `logging.shutdown` closes the handler, which accepts no more, and
delivers what is left for up to `drain_timeout` seconds.

Thread safety: any number of threads. No lock is held while a record is formatted or
added.
"""

from __future__ import annotations

from backpressure.logging.handler import BufferHandler
from backpressure.logging.levels import priority_of
from backpressure.logging.listener import BufferListener

__all__ = ["BufferHandler", "BufferListener", "priority_of"]
