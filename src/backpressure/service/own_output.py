"""Whether a sink writes to what a source reads: the service would feed itself for ever.

Files are compared by device and inode, so a link, or stdout that leads to the file, is
found too.
"""

from __future__ import annotations

import os
import stat

from backpressure.service.config import (
    FileFollow,
    FileTarget,
    SinkConfig,
    SourceConfig,
    StdinLines,
    StdoutTarget,
)
from backpressure.sources.patterns import PathPattern

__all__ = ["followed_output", "output_files"]


def output_files(sink: SinkConfig) -> set[tuple[int, int]]:
    """The regular files (device, inode) that the sink writes to at this moment."""
    try:
        if isinstance(sink, FileTarget):
            found = os.stat(sink.path)
        elif isinstance(sink, StdoutTarget):
            found = os.fstat(1)
        else:
            return set()
    except OSError:
        return set()
    return {(found.st_dev, found.st_ino)} if stat.S_ISREG(found.st_mode) else set()


def followed_output(source: SourceConfig, sink: SinkConfig) -> str | None:
    """What the source reads of the sink's own output; None: nothing."""
    written = output_files(sink)
    if isinstance(source, StdinLines):
        return "stdin" if _inode(0) in written else None
    if not isinstance(source, FileFollow):
        return None
    pattern = PathPattern(source.path)
    if isinstance(sink, FileTarget):
        # By name too: it need not exist yet.
        for path in (os.path.abspath(sink.path), os.path.realpath(sink.path)):
            if pattern.matches(path):
                return path
    if not written:
        return None
    return next((path for path in pattern.find() if _inode(path) in written), None)


def _inode(file: str | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
