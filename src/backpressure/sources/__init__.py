"""Where events come from: lines of files and stdin.

`sources.follow` and `sources.sockets` are for a service.
"""

from __future__ import annotations

from backpressure.sources.line_reader import LineChunk, LineReader, LineTooLong, check_source

__all__ = ["LineChunk", "LineReader", "LineTooLong", "check_source"]
