"""SharedFile: a memory-mapped file that several processes use at once, and that knows
which of them are alive.

Layout. All numbers are little-endian; every part starts on a page.

    header    magic, format, kind, sizes, UUID, boot id, what its kind wants to
              remember (JSON); CRC-32 of all that
    body      what the kind puts there: positions, slots, records ...

A file is built without a name (O_TMPFILE; where there is no such thing, under another
name) and linked into place when it is whole, so no process ever attaches to half of
one. It is allocated in full: a write into it cannot fail later for lack of room on the
disk (which would be a SIGBUS). Nothing keeps other programs from making it shorter
while it is mapped, and a touch of what is gone then is a SIGBUS too: its size is
checked whenever it is opened, and docs/operations.md says what to keep away from it.

Participants. A process that works on the file holds a lock on one byte far behind its
end, a participant slot; see participant_locks.pyx. It takes the slot when it first
needs one. A forked child has none, and opens the file anew at its first use.

Linux only, as the locks and the allocation are: elsewhere making a SharedFile raises
NotImplementedError. What is opened again is opened through /proc, so that its name may
be gone; where there is no /proc, by its name, if that is still the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ringbuf._shared.mapping import Mapping
from ringbuf._shared.participant_locks import ParticipantLocks

if sys.platform == "linux":
    import fcntl

__all__ = ["Header", "SharedFile", "SharedFileError", "boot_id", "open_to_read", "read_header"]

PAGE: Final = 4096
#: 3: positions are whole, in pairs of words; files of 1 and 2, from before the first
#: release, are left to what made them.
FORMAT: Final = 3
_MAGIC: Final = b"PENSTOCK"
# A page that was written, and not only allocated, costs a tenth at its first touch
# (measured on ext4, Linux 6.18: 0.3 us, not 2.6). In units of a huge page the kernel
# maps them as one: then the first touch after they have been written back to the disk
# costs 0.03 us a page, and 2.7 us in small units. But huge pages are dear where a
# virtual machine has to get the memory first (up to 6 ms each), so they are for what is
# used all the time. Nothing in between: in units of a megabyte each page costs 9 us, as
# the kernel looks through all of the megabyte for it.
_HUGE: Final = 2 << 20
_SMALL: Final = 64 << 10
_ZEROS: Final = bytes(_HUGE)
#: magic, format, kind, file size, UUID, boot id, length of the JSON text that follows;
#: behind that, the CRC-32.
_HEADER: Final = struct.Struct("<8s I 4s Q 16s 16s I")
#: `struct flock` of 64-bit Linux: type, whence, start, length, process.
_FLOCK: Final = struct.Struct("hhqqi4x")
#: Where the locks of participant slots lie (see participant_locks.pyx): far behind any
#: file's end, where no other program locks.
_PARTICIPANTS_AT: Final = 1 << 60
#: Held by a process that builds a file under another name, for as long as it does.
_BUILDER_AT: Final = _PARTICIPANTS_AT - 3
#: Where the kernel shows a process its own descriptors; tests go without.
_PROC = "/proc"


class SharedFileError(ValueError):
    """The file is not what it should be: foreign, damaged, of another version, or made
    with another size or type.
    """


class SharedFile:
    """A mapped file with participants. Made by `create` or `attach`; closed with its
    last user.

    path: where it was found. size: bytes of the body. meta: what its maker wanted
        remembered. memory: the body, as a memoryview.
    locks: the ParticipantLocks of this process. Any number of threads may use it.
    """

    def __init__(self, path: str, fd: int, kind: bytes) -> None:
        """Of an open file; its descriptor is left to the caller."""
        self.path = path
        self._absolute = os.path.abspath(path)  # where another working directory may be by then
        self.meta, self.uuid, self.boot_id, size = read_header(path, fd, kind)
        # What is mapped and what the file is opened from again holds no lock, and keeps
        # none.
        self.memory = memoryview(Mapping(fd, size))[PAGE:]
        base = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        try:
            self.locks = ParticipantLocks(base)
        except BaseException:
            os.close(base)
            raise
        self.reopen()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        kind: bytes,
        meta: dict[str, Any],
        size: int,
        start: tuple[int, bytes],
        hot: tuple[int, int] = (0, 0),
        warm: Sequence[tuple[int, int]] = (),
        *,
        durable: bool = False,
    ) -> SharedFile:
        """Make the file, with a body of `size` bytes: zero but for `start`, an offset
        and what is there.

        hot, warm: offsets behind `start`, from and to, of what will be used all the
        time and of what will be used first. They are prefaulted; all of the file would
        take time at the start and be work for the disk.
        durable: header and start are on the disk when this returns; the name is the
        caller's business. FileExistsError where there is a file.
        """
        _need_linux()
        name = _name_of(path)
        # Of a symbolic link to nothing, what it leads to is made, as `open` does it.
        place = os.path.realpath(name) if os.path.islink(name) else name
        import json  # a ring in memory needs none

        text = json.dumps(meta, sort_keys=True).encode()
        if _HEADER.size + len(text) + 4 > PAGE:
            raise ValueError(
                f"what is to be remembered in {name} takes {len(text)} bytes, "
                "and the header is one page"
            )
        whole = PAGE + -(-size // PAGE) * PAGE
        head = (
            _HEADER.pack(_MAGIC, FORMAT, kind, whole, uuid.uuid4().bytes, boot_id(), len(text))
            + text
        )
        head += struct.pack("<I", zlib.crc32(head))
        _remove_abandoned(place)
        with _errors_about(name):
            fd, building = _new_file(place)
        try:
            try:
                os.posix_fallocate(fd, 0, whole)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot allocate {whole:,} bytes: {os.strerror(error.errno or 0)}",
                    name,
                ) from None
            os.pwrite(fd, start[1], PAGE + start[0])
            os.pwrite(fd, head, 0)
            if durable:
                os.fdatasync(fd)  # of these pages only: before the zeros
            started = PAGE + start[0] + -(-len(start[1]) // PAGE) * PAGE
            if hot[0] < hot[1]:
                # First, and with the rest of the huge pages that it lies in: what is in
                # memory already stays in small ones.
                first, end = (PAGE + hot[0]) // _HUGE * _HUGE, -(-(PAGE + hot[1]) // _HUGE) * _HUGE
                _write_zeros(fd, max(first, started), min(end, whole), _HUGE)
            for first, end in warm:
                _write_zeros(fd, max(PAGE + first, started), min(PAGE + end, whole), _SMALL)
            with _errors_about(name):
                if building is None:
                    # The directory is of no use to an absolute path, but makes `link`
                    # follow what it finds there.
                    os.link(f"{_PROC}/self/fd/{fd}", place, src_dir_fd=fd, follow_symlinks=True)
                else:
                    os.link(building, place)
                    _lock(fd, fcntl.F_UNLCK, _BUILDER_AT)
            return cls(name, fd, kind)
        finally:
            os.close(fd)
            if building is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(building)

    @classmethod
    def attach(cls, path: str | os.PathLike[str], kind: bytes) -> SharedFile:
        """Open a file that `create` made; FileNotFoundError, or SharedFileError that
        says what is wrong with it.
        """
        _need_linux()
        name = _name_of(path)
        fd = _open_regular(name, os.O_RDWR)
        try:
            return cls(name, fd, kind)
        finally:
            os.close(fd)

    def reopen(self) -> None:
        """Have a descriptor to lock by, after a fork; does nothing where there is one.
        OSError says what is missing.
        """
        error = self.locks.open(os.fsencode(self._absolute), os.fsencode(_PROC))
        if not error:
            return
        if error == errno.ENOSYS:
            raise _no_proc(
                "the name is gone, and without it only /proc leads to the file", self.path
            )
        if error == errno.ESTALE:
            raise OSError(
                error,
                "other code has closed the descriptors of this file, and its name does not lead to "
                "it any more: attach where it is now",
                self.path,
            )
        advice = (
            "raise the limit (ulimit -n) or close something, and try again"
            if error in (errno.EMFILE, errno.ENFILE)
            else "it may have to before it gives up its rights"
        )
        raise OSError(
            error,
            f"{os.strerror(error)}: each process opens what it shares for itself; {advice}",
            self.path,
        )

    def close(self) -> None:
        """Leave all participant slots. The mapping goes with the last array of it."""
        self.locks.give_up()


def is_participant_slot_taken(fd: int, participant: int) -> bool:
    """Whether another opening of the file than `fd` holds this participant slot; to
    ask, it need not be open for writing.
    """
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _PARTICIPANTS_AT + participant, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def _write_zeros(fd: int, first: int, end: int, unit: int) -> None:
    if first >= end:
        return
    for at in range(first // unit * unit, end, unit):
        start = max(at, first)
        os.pwrite(fd, memoryview(_ZEROS)[: min(at + unit, end) - start], start)


# ---------------------------------------------------------------- files


def _name_of(path: str | os.PathLike[str]) -> str:
    """The path as text; ValueError where there is nothing in it."""
    name = os.fsdecode(path)
    if not name:
        raise ValueError("path must not be empty: give the name of a file")
    return name


@contextlib.contextmanager
def _errors_about(name: str) -> Iterator[None]:
    """Make an OSError within the block one about this name, the only one that the
    caller knows.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), name) from None


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; SharedFileError for what cannot be one of ours. Nothing else
    is opened, as the opening of a FIFO would wait.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.startswith("/proc/") and not os.path.exists(f"{_PROC}/self"):
            raise _no_proc("the file is to be found through /proc", path) from None
        raise
    _need_regular(path, mode)
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _need_regular(path, os.fstat(fd).st_mode)  # it may be another one by now
    except BaseException:
        os.close(fd)
        raise
    return fd


def _need_regular(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise SharedFileError(f"{path} is not a file of ringbuf, but {_nature(mode)}")


def _nature(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def open_to_read(path: str | os.PathLike[str]) -> int:
    """A descriptor to read a file by; SharedFileError if it cannot be one of ours."""
    return _open_regular(_name_of(path), os.O_RDONLY)


def _no_proc(why: str, path: str) -> OSError:
    """Not a FileNotFoundError, which would say that there is no ring."""
    return OSError(errno.ENOSYS, f"{why}: mount it (mount -t proc proc /proc)", path)


def _new_file(path: str) -> tuple[int, str | None]:
    """An empty file to be linked to `path`, open, and its name until then, if it has to
    have one.
    """
    # Any error but that of a file without a name comes up again below.
    with contextlib.suppress(OSError):
        os.stat(f"{_PROC}/self/fd")  # only through this can it be linked
        directory = os.path.dirname(path) or "."
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    while True:
        building = f"{path}.{os.getpid()}-{uuid.uuid4().hex[:8]}.new"
        fd = os.open(building, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # A process that removes abandoned files may have found it before the lock.
        if _lock(fd, fcntl.F_WRLCK, _BUILDER_AT) and os.fstat(fd).st_nlink > 0:
            return fd, building
        os.close(fd)


def _remove_abandoned(path: str) -> None:
    """Remove what processes left that were killed while they built a file of this name;
    a living builder holds a lock on its file.
    """
    directory, name = os.path.split(path)
    ours = re.compile(re.escape(name) + r"\.\d+-[0-9a-f]{8}\.new")
    with contextlib.suppress(OSError), os.scandir(directory or ".") as entries:
        for found in [entry.path for entry in entries if ours.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_if_abandoned(found)


def _remove_if_abandoned(building: str) -> None:
    fd = os.open(building, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if (
            stat.S_ISREG(status.st_mode)
            and status.st_uid == os.geteuid()
            and _lock(fd, fcntl.F_WRLCK, _BUILDER_AT)
            and os.path.samestat(status, os.lstat(building))
        ):
            os.unlink(building)
    finally:
        os.close(fd)


def _lock(fd: int, how: int, at: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(how, os.SEEK_SET, at, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def boot_id() -> bytes:
    """What tells this run of the kernel from every other: 16 bytes."""
    try:
        with open(f"{_PROC}/sys/kernel/random/boot_id", encoding="ascii") as file:
            return uuid.UUID(file.read().strip()).bytes
    except FileNotFoundError as error:
        raise _no_proc(
            "only /proc tells one run of the kernel from the next", error.filename
        ) from None


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
            f"{path} has format {version}, and this version of ringbuf knows {FORMAT}: "
            "left as it is"
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
    import json

    try:
        meta = json.loads(head[_HEADER.size : end])
    except (ValueError, RecursionError):  # the latter where it is nested without end
        meta = None
    if not isinstance(meta, dict):
        raise SharedFileError(f"{path} is damaged: what it remembers is no JSON object")
    return Header(meta, file_uuid, boot, size)


_KINDS: Final = {b"msgs": "a MessageRing", b"recs": "a RingBuffer", b"tokn": "a TokenBucket"}
