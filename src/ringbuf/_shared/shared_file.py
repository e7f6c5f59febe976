"""SharedFile: a memory-mapped file that several processes use at once, and the knowledge of which of them are alive.

Layout. All numbers are little-endian; every part starts on a page.

    header    magic, format, kind, sizes, UUID, boot id, what its kind wants to remember (JSON); CRC-32 of all that
    body      what the kind puts there: positions, slots, records ...

A file is built under another name and linked into place when it is whole, so nobody ever attaches to half of one. It is
allocated in full: a write into it can not fail later for lack of room on the disk (which would be a SIGBUS).

Who is alive. A process that takes part holds a lock on one byte far behind the end of the file, its seat. The locks belong to the
open file (`F_OFD_SETLK`), so the kernel lets go of them when the process ends, however it ends, and nobody needs to be asked
about process numbers. After a fork the child opens the file anew and takes a seat of its own.

Linux only, as the locks and the allocation are: elsewhere making a SharedFile raises NotImplementedError.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import struct
import sys
import threading
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

if sys.platform == "linux":
    import fcntl

__all__ = ["Header", "SharedFile", "SharedFileError", "boot_id", "read_header"]

PAGE: Final = 4096
#: 3: positions are whole, in pairs of words; files of 1 and 2, from before the first release, are left to what made them.
FORMAT: Final = 3
_MAGIC: Final = b"PENSTOCK"
# A page that was written, and not only allocated, costs a tenth at its first touch (measured on ext4, Linux 6.18: 0.3 us, not
# 2.6). In units of a huge page the kernel maps them as one: then the first touch after they have been written back to the disk
# costs 0.03 us a page, and 2.7 us in small units. But huge pages are dear where a virtual machine has to get the memory first (up
# to 6 ms each), so they are for what is used all the time. Nothing in between: in units of a megabyte each page costs 9 us, as
# the kernel looks through all of the megabyte for it.
_HUGE: Final = 2 << 20
_SMALL: Final = 64 << 10
_ZEROS: Final = bytes(_HUGE)
#: magic, format, kind, file size, UUID, boot id, length of the JSON text that follows; behind that, the CRC-32.
_HEADER: Final = struct.Struct("<8s I 4s Q 16s 16s I")
#: `struct flock` of 64-bit Linux: type, whence, start, length, process.
_FLOCK: Final = struct.Struct("hhqqi4x")
#: Where the locked bytes lie: far behind any file's end, so that no lock of somebody else's meets them.
_SEATS_AT: Final = 1 << 60
_MUTEX_AT: Final = _SEATS_AT - 1


class SharedFileError(ValueError):
    """The file is not what it should be: foreign, damaged, of another version, or made with another size or type."""


class SharedFile:
    """A mapped file with seats. Made by `create` or `attach`; closed with its last user.

    path: where it was found. size: bytes of the body. meta: what its maker wanted remembered. memory: the body, as a memoryview.
    on_fork: called in a forked child when the file has been opened anew and no seat is held.
    """

    def __init__(self, path: str, fd: int, kind: bytes, seats: int) -> None:
        self.path = path
        self.seats = seats
        self.on_fork: Callable[[], None] | None = None
        self._held: set[int] = set()
        self._recovering = threading.Lock()
        self.meta, self.uuid, self.boot_id, size = read_header(path, fd, kind)
        # mmap keeps a duplicate of its descriptor. Through an opening of its own, so that neither a closed ring nor a child that
        # inherits the mapping keeps the seats.
        mapped = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(mapped, size)
        finally:
            os.close(mapped)
        self.memory = memoryview(self._map)[PAGE:]
        self.fd = fd  # ours from here on
        _open_files.add(self)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], kind: bytes, meta: dict[str, Any], size: int, seats: int, start: tuple[int, bytes],
        hot: tuple[int, int] = (0, 0), warm: Sequence[tuple[int, int]] = (), *, durable: bool = False,
    ) -> SharedFile:  # fmt: skip
        """Make the file, with a body of `size` bytes: zero but for `start`, an offset and what is there.

        hot, warm: offsets behind `start`, from and to, of what will be used all the time and of what will be used first. They are
        made ready for it; all of the file would be time at the start and work for the disk.
        durable: header and start are on the disk when this returns; the name is the caller's business. FileExistsError where
        there is a file.
        """
        _need_linux()
        name = os.fspath(path)
        text = json.dumps(meta, sort_keys=True).encode()
        if _HEADER.size + len(text) + 4 > PAGE:
            raise ValueError(
                f"what is to be remembered in {name} takes {len(text)} bytes, and the header is one page"
            )
        whole = PAGE + -(-size // PAGE) * PAGE
        head = (
            _HEADER.pack(_MAGIC, FORMAT, kind, whole, uuid.uuid4().bytes, boot_id(), len(text))
            + text
        )
        head += struct.pack("<I", zlib.crc32(head))
        building = f"{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.new"
        fd = os.open(building, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.posix_fallocate(fd, 0, whole)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"can not allocate {whole:,} bytes: {os.strerror(error.errno or 0)}",
                    name,
                ) from None
            os.pwrite(fd, start[1], PAGE + start[0])
            os.pwrite(fd, head, 0)
            if durable:
                os.fdatasync(fd)  # of these pages only: before the zeros
            started = PAGE + start[0] + -(-len(start[1]) // PAGE) * PAGE
            if hot[0] < hot[1]:
                # First, and with the rest of the huge pages that it lies in: what is in memory already stays in small ones.
                first, end = (PAGE + hot[0]) // _HUGE * _HUGE, -(-(PAGE + hot[1]) // _HUGE) * _HUGE
                _write_zeros(fd, max(first, started), min(end, whole), _HUGE)
            for first, end in warm:
                _write_zeros(fd, max(PAGE + first, started), min(PAGE + end, whole), _SMALL)
            os.link(building, name)
            return cls(name, fd, kind, seats)
        except BaseException:
            os.close(fd)
            raise
        finally:
            os.unlink(building)

    @classmethod
    def attach(cls, path: str | os.PathLike[str], kind: bytes, seats: int) -> SharedFile:
        """Open a file that `create` made; FileNotFoundError, or SharedFileError that says what is wrong with it."""
        _need_linux()
        name = os.fspath(path)
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(name, fd, kind, seats)
        except BaseException:
            os.close(fd)
            raise

    # ------------------------------------------------------------ seats

    def take_seat(self, among: Iterator[int] | None = None) -> int | None:
        """Take a free seat, of these or of any; None: all are taken by living processes."""
        for seat in among if among is not None else range(self.seats):
            if seat not in self._held and self._lock(_SEATS_AT + seat):
                self._held.add(seat)
                return seat
        return None

    def is_taken(self, seat: int) -> bool:
        """Whether a living process has this seat."""
        if seat in self._held:
            return True
        return self.fd < 0 or is_seat_taken(
            self.fd, seat
        )  # closed: nobody is to be tidied up after

    @contextlib.contextmanager
    def recovery(self) -> Iterator[bool]:
        """Whether the caller is, for the length of the block, the only one who tidies up after the dead; does not wait."""
        if not self._recovering.acquire(blocking=False):
            yield False
            return
        try:
            if not self._lock(_MUTEX_AT):
                yield False
                return
            try:
                yield True
            finally:
                self._unlock(_MUTEX_AT)
        finally:
            self._recovering.release()

    def _lock(self, at: int) -> bool:
        try:
            fcntl.fcntl(
                self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
            )
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _unlock(self, at: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, 1, 0))

    # ------------------------------------------------------------ the end, and forks

    def close(self) -> None:
        """Leave all seats. The mapping stays until the last array of it has gone."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)
            self._held.clear()

    def __del__(self) -> None:
        self.close()

    def _after_fork(self) -> None:
        # The inherited descriptor shares the parent's locks. Opened through /proc, so that the name may be gone by now.
        inherited = self.fd
        if inherited < 0:
            return
        self.fd = os.open(f"/proc/self/fd/{inherited}", os.O_RDWR | os.O_CLOEXEC)
        os.close(inherited)
        self._held = set()
        self._recovering = threading.Lock()
        if self.on_fork is not None:
            self.on_fork()


_open_files: weakref.WeakSet[SharedFile] = weakref.WeakSet()


def _reopen_all() -> None:
    for file in list(_open_files):
        file._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen_all)


def is_seat_taken(fd: int, seat: int) -> bool:
    """Whether another opening of the file than `fd` holds this seat; to ask, it need not be open for writing."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _SEATS_AT + seat, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def _write_zeros(fd: int, first: int, end: int, unit: int) -> None:
    if first >= end:
        return
    for at in range(first // unit * unit, end, unit):
        start = max(at, first)
        os.pwrite(fd, memoryview(_ZEROS)[: min(at + unit, end) - start], start)


def boot_id() -> bytes:
    """What tells this run of the kernel from every other: 16 bytes."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return uuid.UUID(file.read().strip()).bytes


def _need_linux() -> None:
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        raise NotImplementedError(
            "path= needs 64-bit Linux (open file description locks): use a ring without a path"
        )


class Header(NamedTuple):
    """What is at the head of a file."""

    meta: dict[str, Any]
    uuid: bytes
    boot_id: bytes
    size: int  #: of the whole file, bytes


def read_header(path: str, fd: int, kind: bytes) -> Header:
    """Of an open file; SharedFileError that says what is wrong with it."""
    head = os.pread(fd, PAGE, 0)
    if len(head) < PAGE or head[:8] != _MAGIC:
        raise SharedFileError(f"{path} is not a file of ringbuf")
    _, version, found, size, file_uuid, boot, length = _HEADER.unpack_from(head)
    if version != FORMAT:
        raise SharedFileError(
            f"{path} has format {version}, and this version of ringbuf knows {FORMAT}: left as it is"
        )
    end = _HEADER.size + length
    if end + 4 > PAGE or zlib.crc32(head[:end]) != struct.unpack_from("<I", head, end)[0]:
        raise SharedFileError(f"{path} is damaged: the checksum of its header does not match")
    if found != kind:
        raise SharedFileError(
            f"{path} holds {_KINDS.get(found, 'something else')}, not {_KINDS[kind]}"
        )
    true_size = os.fstat(fd).st_size
    if true_size != size:
        raise SharedFileError(
            f"{path} is damaged: it has {true_size:,} bytes and was made with {size:,}"
        )
    try:
        meta = json.loads(head[_HEADER.size : end])
    except (ValueError, RecursionError):  # the latter where it is nested without end
        meta = None
    if not isinstance(meta, dict):
        raise SharedFileError(f"{path} is damaged: what it remembers is no JSON object")
    return Header(meta, file_uuid, boot, size)


_KINDS: Final = {b"msgs": "a MessageRing", b"recs": "a RingBuffer", b"tokn": "a TokenBucket"}
