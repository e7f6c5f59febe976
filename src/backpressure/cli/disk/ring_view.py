"""A lane's ring file as the commands see it, which never become a participant of it.

A running owner is not disturbed. Without an owner the events can be read too, from a
private copy in memory, since a participant of the file itself would change it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from backpressure.lanes.ring_debt import RingDebt, debt_of, implausible
from backpressure.spill.runs import Lost
from ringbuf import MessageRing, Messages, Salvage, SharedFileError, salvage
from ringbuf._messages.look import next_seq_of, used_parts

__all__ = [
    "RingFileView",
    "look_at_ring",
    "lost_in_ring",
    "next_seq_in",
    "ring_events",
    "salvage_ring",
]

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RingFileView:
    """A ring file at one moment, or what is wrong with it.

    Where it is damaged, the numbers are 0.
    """

    path: str
    size: int  #: of the file, bytes
    capacity_bytes: int = 0
    used_bytes: int = 0  #: not free: waiting, or taken and not acked
    acked_seq: int = 0  #: the lowest number whose room is in use
    read_seq: int = 0  #: the lowest number that was never taken
    next_seq: int | None = None  #: the number that the next event gets; None: not known
    #: Then only what checksums prove whole is delivered: see salvage_ring.
    from_before_reboot: bool = False
    #: Why a buffer cannot use it, or None.
    damage: str | None = None
    #: The header has another format: a later release may have written it.
    other_format: bool = False


def look_at_ring(path: str) -> RingFileView | None:
    """Header and positions, or None where there is no file. Raises OSError."""
    try:
        size = os.stat(path).st_size
        from_before_reboot = MessageRing.needs_salvage(path)
        try:
            look = MessageRing.look(path)
        except SharedFileError:
            if not from_before_reboot:
                raise
            # Power loss may leave positions that make no sense. The frames themselves
            # prove what is whole.
            return RingFileView(path=path, size=size, from_before_reboot=True)
    except FileNotFoundError:
        return None
    except SharedFileError as error:
        return RingFileView(
            path=path, size=size, damage=str(error), other_format="has format" in str(error)
        )
    if wrong := implausible(look.next_seq):
        return RingFileView(path=path, size=size, damage=f"{path} is damaged: {wrong}")
    return RingFileView(
        path=path,
        size=size,
        capacity_bytes=look.capacity_bytes,
        used_bytes=look.used_bytes,
        acked_seq=look.acked_seq,
        read_seq=look.read_seq,
        next_seq=look.next_seq,
        from_before_reboot=from_before_reboot,
    )


def next_seq_in(look: RingFileView) -> int | None:
    """The number that the next event would have got, of a damaged file.

    None where the file does not say.
    """
    return next_seq_of(look.path)


def salvage_ring(look: RingFileView, end_seq: int) -> tuple[Salvage, RingDebt]:
    """What the next start will deliver of a ring from before a reboot.

    Also what is lost of it; `end_seq` is where the lane's store ends. Takes as much
    memory as the ring has capacity. Raises SharedFileError, OSError.
    """
    found = salvage(look.path)
    return found, debt_of(found, end_seq)


def lost_in_ring(debt: RingDebt) -> list[Lost]:
    """What of a ring from before a reboot is lost.

    Each of its numbers counts as an event.
    """
    return [
        Lost(
            first_seq=first,
            end_seq=end,
            events=end - first,
            reason="in memory when the machine went down",
        )
        for first, end in debt.missing
    ]


def ring_events(look: RingFileView) -> Iterator[Messages]:
    """What a ring without an owner holds, by ascending numbers.

    The file stays as it is. Takes as much memory as the ring is filled. Raises
    SharedFileError, OSError.
    """
    fd = _private_copy(look)
    try:
        ring = MessageRing.attach(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    try:
        orphans = []
        while len(messages := ring.take_orphaned(None, _PIECE_BYTES)):
            orphans.append(messages)
            ring.release(messages)
        yield from sorted(orphans, key=lambda messages: messages.first_seq)
        while len(messages := ring.take(None, _PIECE_BYTES)):
            ring.release(messages)
            yield messages
    finally:
        ring.close()


def _private_copy(look: RingFileView) -> int:
    """A descriptor of a copy of the ring in memory.

    Its free room is left out.
    """
    source = os.open(look.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.memfd_create("ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(copy, look.size)
            for start, end in used_parts(look.path):
                _copy(source, copy, start, end)
            return copy
        except BaseException:
            os.close(copy)
            raise
    finally:
        os.close(source)


def _copy(source: int, target: int, start: int, end: int) -> None:
    zeros = bytes(_PIECE_BYTES)
    while start < end:
        piece = os.pread(source, min(_PIECE_BYTES, end - start), start)
        if not piece:
            raise SharedFileError("the ring file became shorter while it was read")
        if piece != zeros[: len(piece)]:  # what was never used takes no memory
            os.pwrite(target, piece, start)
        start += len(piece)
