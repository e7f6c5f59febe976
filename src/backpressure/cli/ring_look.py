"""A look at a lane's ring file, without taking part in it.

An owner that runs notices nothing: header and positions are read with plain reads. Without an owner the events can be had as
well, from a private copy in memory, since taking part in the file itself would change it.

Where the positions are: the file is header, desk, positions, index (8 bytes for each granule of 64) and data, each from a page
on. The first words of the positions, little-endian, as in _cursor.pxd of ringbuf

      0  low half of the write position << 32 | low half of the next sequence number
     64  low half of the read position << 32 | …
    128  tail: position << 12 | …
    136  the sequence number at the tail, or one from shortly before

tests/test_disk_cli.py compares this with what a ring says of itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from backpressure.ring_salvage import RingDebt, debt_of
from ringbuf import MessageRing, Messages, Salvage, SharedFileError, salvage
from ringbuf._shared_file import boot_id, read_header

__all__ = ["RingLook", "look_at_ring", "next_seq_in", "ring_events", "salvage_ring"]

_PAGE: Final = 4096
_GRANULE: Final = 64
_PLACE_BITS: Final = 12
_WORD: Final = struct.Struct("<Q")
_TAIL: Final = struct.Struct("<QQ")
_READ_AT: Final = 64
_TAIL_AT: Final = 128
# Between header and positions: 32 seats with 64 slots each, in cache lines, and the page filled up.
_DESK_BYTES: Final = -(-64 * (1 + 32 + 32 * 64) // _PAGE) * _PAGE
_KIND: Final = b"msgs"
_PIECE_BYTES: Final = 1 << 20
# Beside a running owner a look may not fit together: if a whole ring of events passed between two of its reads.
_LOOKS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RingLook:
    """A ring file at one moment. What is damaged has zeros."""

    path: str
    size: int  #: of the file, bytes
    capacity_bytes: int = 0
    used_bytes: int = 0  #: not free: waiting, or taken and not acked
    next_seq: int | None = None  #: the number that the next event gets; None: nothing says so
    from_before_reboot: bool = False  #: then only what checksums prove whole is delivered: see salvage_ring
    #: Why a buffer can not use it, or None.
    damage: str | None = None
    #: A header that is not of this format, which a later release may have written.
    other_format: bool = False


def look_at_ring(path: str) -> RingLook | None:
    """Header and positions, or None where there is no file. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        try:
            meta, _, boot, _ = read_header(path, fd, _KIND)
        except SharedFileError as error:
            return RingLook(path=path, size=size, damage=str(error), other_format="has format" in str(error))
        granules = meta.get("granules")
        if not isinstance(granules, int) or granules < _PAGE // _GRANULE or granules & (granules - 1):
            return RingLook(path=path, size=size, damage=f"{path} is damaged: it speaks of {granules!r} granules")
        at = _positions_at(size, granules)
        if at < _PAGE:
            return RingLook(path=path, size=size, damage=f"{path} is damaged: it is too small for {granules} granules")
        positions = _read_positions(fd, at, granules)
        if positions is None:
            return RingLook(path=path, size=size, damage=f"{path} is damaged: its positions make no sense")
        return RingLook(
            path=path,
            size=size,
            capacity_bytes=granules * _GRANULE,
            used_bytes=positions[0] * _GRANULE,
            next_seq=positions[1],
            from_before_reboot=boot != boot_id(),
        )
    finally:
        os.close(fd)


def next_seq_in(look: RingLook) -> int | None:
    """The number that the next event would have got, from a file that is damaged elsewhere; None where nothing says so."""
    for power in range((_PAGE // _GRANULE).bit_length() - 1, 32):
        granules = 1 << power
        # The size of the file tells how many there are.
        at = _positions_at(look.size, granules)
        if at == _PAGE + _DESK_BYTES:
            fd = os.open(look.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                positions = _read_positions(fd, at, granules)
            finally:
                os.close(fd)
            if positions is not None:
                return positions[1]
    return None


def _read_positions(fd: int, at: int, granules: int) -> tuple[int, int] | None:
    """Granules in use and the next number; None where what is there makes no sense."""
    for _ in range(_LOOKS):
        # In this order: each of them is, when it is read, no less than the one before was.
        tail_and_sequence = os.pread(fd, _TAIL.size, at + _TAIL_AT)
        words = os.pread(fd, _WORD.size, at + _READ_AT), os.pread(fd, _WORD.size, at)
        if len(tail_and_sequence) < _TAIL.size or any(len(word) < _WORD.size for word in words):
            return None
        tail, sequence = _TAIL.unpack(tail_and_sequence)
        tail >>= _PLACE_BITS
        read, write = (_WORD.unpack(word)[0] for word in words)
        used = _nearest32(write >> 32, tail) - tail
        if granules <= tail and 0 <= _nearest32(read >> 32, tail) - tail <= used <= granules:
            return used, _nearest32(write, sequence)
    return None


def salvage_ring(look: RingLook, end_seq: int) -> tuple[Salvage, RingDebt]:
    """Of a ring from before a reboot, beside a store that ends at `end_seq`: what the next start will deliver, and what is lost.

    Takes as much memory as the ring has capacity. Raises SharedFileError, OSError.
    """
    found = salvage(look.path)
    return found, debt_of(found, end_seq)


def ring_events(look: RingLook) -> Iterator[Messages]:
    """What a ring holds that nobody has open, by ascending numbers; the file stays as it is.

    Takes as much memory as the ring is filled. Raises SharedFileError, OSError.
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


def _private_copy(look: RingLook) -> int:
    """A descriptor of a file in memory with all of the ring but the parts of its data that are free."""
    source = os.open(look.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.memfd_create("ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(copy, look.size)
            granules = look.capacity_bytes // _GRANULE
            data_at = look.size - look.capacity_bytes
            _copy(source, copy, 0, data_at)
            (tail,) = _WORD.unpack(os.pread(source, _WORD.size, _positions_at(look.size, granules) + _TAIL_AT))
            start = (tail >> _PLACE_BITS) % granules * _GRANULE
            first = min(look.used_bytes, look.capacity_bytes - start)  # it may run over the end
            _copy(source, copy, data_at + start, data_at + start + first)
            _copy(source, copy, data_at, data_at + look.used_bytes - first)
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


def _positions_at(size: int, granules: int) -> int:
    return size - granules * _GRANULE - -(-granules * 8 // _PAGE) * _PAGE - _PAGE


def _nearest32(low: int, near: int) -> int:
    """The number with these low 32 bits that is nearest to `near`."""
    step = (low - near) & 0xFFFFFFFF
    return (near + (step - (1 << 32) if step >> 31 else step)) % (1 << 64)
