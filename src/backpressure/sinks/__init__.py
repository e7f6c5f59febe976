"""Where events go: the `Sink` protocol, and sinks for files and streams.

`sinks.http` and `sinks.tcp` send over the network.
"""

from __future__ import annotations

from backpressure.base.errors import SinkGone
from backpressure.delivery.sink import Sink
from backpressure.sinks.file import FileSink, open_sink
from backpressure.sinks.lines import LineSink
from backpressure.sinks.stream import StreamSink

__all__ = ["FileSink", "LineSink", "Sink", "SinkGone", "StreamSink", "open_sink"]
