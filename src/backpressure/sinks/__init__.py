"""Where events go: the `Sink` protocol, and sinks for files and streams.

`sinks.http` and `sinks.tcp` send over the network.
"""

from __future__ import annotations

from backpressure.base.errors import SinkGone
from backpressure.delivery.sink import Sink
from backpressure.sinks.file import FileSink, LineSink, StreamSink, open_sink

__all__ = ["FileSink", "LineSink", "Sink", "SinkGone", "StreamSink", "open_sink"]
