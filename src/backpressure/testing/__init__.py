"""Tools for testing code that uses this library: public, and used by its own tests.

`FakeClock` replaces the real clock of any policy, so that a test sets the time and
never sleeps. `MemorySink` keeps what is sent to it, and `FailingSink` makes any sink
fail at random, but the same way each time; `make_batch` makes a batch for a test of a
sink. The file systems replace the disk:
`CrashingFileSystem` loses power, `FaultyFileSystem` fails and `RecordingFileSystem`
records.
"""

from __future__ import annotations

from backpressure.testing.batches import make_batch
from backpressure.testing.clock import FakeClock
from backpressure.testing.crashing_files import CrashingFileSystem
from backpressure.testing.faulty_files import (
    Call,
    FaultyFileSystem,
    PowerLoss,
    RecordingFileSystem,
)
from backpressure.testing.sinks import FailingSink, MemorySink

__all__ = [
    "Call",
    "CrashingFileSystem",
    "FailingSink",
    "FakeClock",
    "FaultyFileSystem",
    "MemorySink",
    "PowerLoss",
    "RecordingFileSystem",
    "make_batch",
]
