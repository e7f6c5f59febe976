"""How large the lanes of a directory are where nobody says so.

What a lane is for. Its ring takes what comes while the sink hiccups. Up to the spill
mark, half of the ring, nothing of that touches the disk:

    lane_bytes >= 2 * events a second * bytes of an event * seconds of a hiccup

What it costs. The ring's file takes 9/8 of `lane_bytes` of the disk from the start, and
a mebibyte is kept beside it for acks. Memory is taken as the ring fills, an eighth at
the start. The file is allocated in full and never sparse: on a disk that is full by
then, a write into a hole of a mapped file would end the process (SIGBUS), where an
allocation that fails is an error at the start.

What can be known without being told is how much room there is, so that is the law:

 1. Rings that are there keep their size: another one costs moving what they hold.
 2. All new ones together take at most a sixteenth of the disk's free space, or of
    `max_disk_bytes` where that is less, and an eighth of the machine's memory.
 3. A lane has 64 MiB at most, which is BufferConfig's default; 1 MiB at least, and
    twice the longest line that a source may bring. It is a power of two, as rings are.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.buffer.config import BufferConfig
from backpressure.lanes.durable_lane import RING_NAME, lane_name
from ringbuf import MessageRing

__all__ = ["lane_bytes_for", "lane_bytes_within"]

_LEAST: Final = 1 << 20
_MOST: Final = BufferConfig().lane_bytes
_DISK_SHARE: Final = 1 / 16
_MEMORY_SHARE: Final = 1 / 8
# What the file of a ring takes, as a multiple of its capacity: 8 bytes of index for
# each 64 bytes of data.
_FILE: Final = 9 / 8


def lane_bytes_for(config: BufferConfig, longest_event: int = 0, buffers: int = 1) -> int:
    """The size of each lane of that buffer, instead of the config's own.

    buffers: how many such buffers share the disk and the memory.
    longest_event: bytes of the longest that is to fit. In memory only the config's size
    stays: what is not used there costs nothing.
    """
    if config.directory is None:
        return config.lane_bytes
    directory = os.path.abspath(os.fspath(config.directory))
    if (size := _size_of_rings(directory)) is not None:
        return size
    disk = _free_bytes(directory)
    if config.max_disk_bytes is not None:
        disk = min(disk, config.max_disk_bytes)
    levels = config.flow_control.priority_levels * buffers
    return lane_bytes_within(levels, disk, _memory_bytes(), longest_event)


def lane_bytes_within(
    levels: int, disk_bytes: float, memory_bytes: float, longest_event: int = 0
) -> int:
    """The size of each of `levels` lanes where there is so much room."""
    room = min(disk_bytes * _DISK_SHARE / _FILE, memory_bytes * _MEMORY_SHARE) / levels
    size = 1 << int(max(min(room, _MOST), _LEAST)).bit_length() - 1
    while size < 2 * longest_event:
        size *= 2
    return size


def _size_of_rings(directory: str) -> int | None:
    """The capacity of the largest ring that is there and sound; None: there is none."""
    found = []
    for priority in range(1, PRIORITY_LEVELS + 1):
        try:
            look = MessageRing.look(os.path.join(directory, lane_name(priority), RING_NAME))
        except (OSError, ValueError, NotImplementedError):
            continue  # whoever opens it says what is wrong
        found.append(look.capacity_bytes)
    return max(found, default=None)


def _free_bytes(path: str) -> float:
    """What is free where `path` lies, or is to lie."""
    while not os.path.exists(path) and (parent := os.path.dirname(path)) != path:
        path = parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return float("inf")  # whoever opens it says what is wrong


def _memory_bytes() -> float:
    """The machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return float("inf")
