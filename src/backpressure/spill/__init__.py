"""The disk tier: what a lane's ring cannot hold, in order, there again after a crash.

    store.py         SpillStore: append, read, ack, sync
    writer.py        the newest segment
    reader.py        blocks of any segment, past damage
    runs.py          what reading yields: Run, Lost
    recovery.py      what a directory says of itself when it is opened
    settled.py       which numbers need no delivery any more
    blocks.py, segments.py, ledger.py, directory.py
                     the format, each part with its invariants and layout
    reclaimer.py     the record of acks, and deleting the files that it lets go
    reserve.py       room that is given up when the disk is full
    quarantine.py    damaged files that are kept aside
    dead_letters.py  events that were given up
    offline/         reading the files without their store; documented as salvage.py
    files.py         every call to the operating system

The directory belongs to one process (BufferDirectory), and in it each lane to one
SpillStore.
"""

from backpressure.spill.config import SpillConfig
from backpressure.spill.dead_letters import DeadLetter, DeadLetterStore
from backpressure.spill.directory import BufferDirectory
from backpressure.spill.files import FileSystem, LocalFileSystem
from backpressure.spill.runs import Lost, Run
from backpressure.spill.stats import SpillStats
from backpressure.spill.store import SpillStore

__all__ = [
    "BufferDirectory",
    "DeadLetter",
    "DeadLetterStore",
    "FileSystem",
    "LocalFileSystem",
    "Lost",
    "Run",
    "SpillConfig",
    "SpillStats",
    "SpillStore",
]
