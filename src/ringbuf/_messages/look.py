"""A look at a MessageRing's file without taking part in it: nothing is written and no
participant slot is taken, so the ring's users are not disturbed.

Only a header that is sound is believed, but for the one number that must not be
forgotten: see `next_seq_of`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from ringbuf._messages.file import KIND, read_meta
from ringbuf._messages.file_positions import PARTICIPANTS, layout, read_positions
from ringbuf._shared import shared_file
from ringbuf._shared.shared_file import (
    PAGE,
    SharedFileError,
    _need_linux,
    is_participant_slot_taken,
    open_to_read,
    read_header,
)

__all__ = ["RingLook", "look", "next_seq_of", "used_parts"]

_GRANULE: Final = 64
_LEAST_GRANULES: Final = 64
_MOST_GRANULES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RingLook:
    """A MessageRing's file at one moment, as `MessageRing.look` saw it: acked_seq <=
    read_seq <= next_seq.
    """

    path: str
    capacity_bytes: int  #: memory for messages and their headers
    used_bytes: int  #: of it: claimed, waiting, or taken and not yet released
    acked_seq: int  #: all messages with a lower number have been released
    read_seq: int  #: all with a lower number have been taken: what waits begins here
    next_seq: int  #: the number that the next message gets
    #: Participant slots that living processes hold: one for each ring object that has
    #: pushed or taken, more for one with much under way.
    participants: int
    survived_reboot: (
        bool  #: made by another run of the kernel: then some of it may never have reached the disk
    )


class _Positions(NamedTuple):
    tail_offset: int  #: in the data, bytes
    used_bytes: int
    acked_seq: int
    read_seq: int
    next_seq: int


def look(path: str | os.PathLike[str]) -> RingLook:
    """See MessageRing.look."""
    name = os.fsdecode(path)
    with _open(name) as fd:
        granules, boot = _read_sound_header(name, fd)
        found = _positions(name, fd, granules)
        return RingLook(
            path=name,
            capacity_bytes=granules * _GRANULE,
            used_bytes=found.used_bytes,
            acked_seq=found.acked_seq,
            read_seq=found.read_seq,
            next_seq=found.next_seq,
            participants=sum(
                is_participant_slot_taken(fd, participant) for participant in range(PARTICIPANTS)
            ),
            survived_reboot=boot != shared_file.boot_id(),
        )


def used_parts(path: str) -> list[tuple[int, int]]:
    """Which bytes of the file, as (start, end), are all of the ring but the parts of
    its data that are free. Raises as `look`.
    """
    with _open(path) as fd:
        granules, _ = _read_sound_header(path, fd)
        found = _positions(path, fd, granules)
    data, end = (PAGE + at for at in layout(granules)[2:])
    start = data + found.tail_offset
    first = min(found.used_bytes, end - start)  # it may run over the end
    return [(0, data), (start, start + first), (data, data + found.used_bytes - first)]


def next_seq_of(path: str) -> int | None:
    """The number that the next message would have got, where the header is damaged;
    None where nothing tells. Raises OSError.
    """
    with _open(path) as fd:
        size = os.fstat(fd).st_size
        for power in range(_LEAST_GRANULES.bit_length() - 1, _MOST_GRANULES.bit_length()):
            if PAGE + layout(1 << power)[3] == size:  # the size tells how many there are
                try:
                    return _positions(path, fd, 1 << power).next_seq
                except SharedFileError:
                    return None
    return None


@contextlib.contextmanager
def _open(path: str) -> Iterator[int]:
    _need_linux()
    fd = open_to_read(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_sound_header(path: str, fd: int) -> tuple[int, bytes]:
    """Granules and boot id of a ring's file that has its full size."""
    meta, _, boot, size = read_header(path, fd, KIND)
    granules, _ = read_meta(path, meta, size - PAGE)
    return granules, boot


def _positions(path: str, fd: int, granules: int) -> _Positions:
    with (
        mmap.mmap(fd, 0, prot=mmap.PROT_READ) as whole,
        memoryview(whole) as view,
        view[PAGE:] as body,
    ):
        found = read_positions(body, granules)
    if found is None:
        raise SharedFileError(f"{path} is damaged: its positions make no sense")
    return _Positions(*found)
