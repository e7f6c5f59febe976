"""Where events go: the `Sink` protocol, and sinks for files and streams.

`sinks.http` and `sinks.tcp` send over the network.
"""

from __future__ import annotations

from backpressure.base.errors import (
    BatchRejected,
    BatchTooLarge,
    PartialFailure,
    SinkGone,
    SinkOutcome,
    SinkUnavailable,
)
from backpressure.delivery.sink import AsyncSink, Sink
from backpressure.sinks.file import FileSink, open_sink
from backpressure.sinks.lines import LineSink
from backpressure.sinks.stream import StreamSink

__all__ = [
    "AsyncSink",
    "BatchRejected",
    "BatchTooLarge",
    "FileSink",
    "LineSink",
    "PartialFailure",
    "Sink",
    "SinkGone",
    "SinkOutcome",
    "SinkUnavailable",
    "StreamSink",
    "open_sink",
]
