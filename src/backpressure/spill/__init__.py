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
    dead_letter.py   DeadLetter: an event that was given up
    dead_letters.py  where they are kept
    offline/         reading the files without their store; documented as salvage.py
    files.py         every call to the operating system

The directory belongs to one process (BufferDirectory), and in it each lane to one
SpillStore.
"""

import typing

from backpressure.base.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
    from backpressure.spill.config import SpillConfig
    from backpressure.spill.dead_letter import DeadLetter
    from backpressure.spill.dead_letters import DeadLetterStore
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

# The modules that define them; type checkers read the same above.
_HOMES = {
    "backpressure.spill.config": "SpillConfig",
    "backpressure.spill.dead_letter": "DeadLetter",
    "backpressure.spill.dead_letters": "DeadLetterStore",
    "backpressure.spill.directory": "BufferDirectory",
    "backpressure.spill.files": "FileSystem LocalFileSystem",
    "backpressure.spill.runs": "Lost Run",
    "backpressure.spill.stats": "SpillStats",
    "backpressure.spill.store": "SpillStore",
}
# A type checker would take it for leave to ask for any name.
if not typing.TYPE_CHECKING:
    __getattr__ = _lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
