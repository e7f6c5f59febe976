"""FollowSource: the lines of files that grow, through rotation, and across restarts.

    rename and create    the old file is read to its end, and for a moment longer, since
                         its writer may not have reopened yet; then the new one from its
                         beginning
    copy and truncate    a file that is shorter than what was read is read from its
                         beginning; what was written between the copy and the truncation
                         is lost, as it is for every reader
    deleted              read to its end, then forgotten
    restart              goes on at the committed position, also in a file that was
                         renamed within its directory meanwhile

Lines are put in the order of each file. A last line without a newline waits for its
end, and is taken as it is when its file has been rotated away. A line longer than
`max_line_bytes` is skipped and counted. A pattern should not match the names that
rotated files get: within a run they are recognised, but the next run takes them for
files that were never read.

Needs pread, which Windows does not have.

Runs in one thread; the counters may be read by any.
"""

from __future__ import annotations

import glob
import logging
import os
import stat
import threading
import time
from pathlib import Path

from backpressure.sources.base import Put
from backpressure.sources.positions import HEAD_BYTES, FileId, Positions, head_of

__all__ = ["FollowSource"]

_log = logging.getLogger("backpressure")

# Seconds between two looks at the files: too short to notice, and a look costs some
# system calls.
_POLL_SECONDS = 0.2
# Seconds after which a pattern is looked up anew.
_SCAN_SECONDS = 1.0
# Seconds without news after which a rotated file counts as complete: its writer has
# reopened by then.
_GRACE_SECONDS = 2.0
_CHUNK_BYTES = 256 * 1024
# Rotated files that are remembered: a pattern may find them under their new names.
_REMEMBERED = 100


class FollowSource:
    """Follows the files that `pattern` names: a path, or one with *, ? and [].

    start: where to begin with files that are there at the start and were never read:
        "end" or "beginning". What appears later is read from its beginning.
    positions: what is remembered; shared by all sources of a service.
    poll: seconds between two looks. grace: seconds after which a rotated file without
        news counts as complete.
    """

    def __init__(
        self,
        pattern: str,
        *,
        positions: Positions | None = None,
        start: str = "end",
        max_line_bytes: int = 1 << 20,
        poll: float = _POLL_SECONDS,
        grace: float = _GRACE_SECONDS,
    ) -> None:
        if start not in ("end", "beginning"):
            raise ValueError(f'start must be "end" or "beginning", not {start!r}')
        self.name = pattern
        #: Lines skipped because they were too long.
        self.oversized = 0
        self._pattern = os.path.abspath(pattern)
        self._positions = positions if positions is not None else Positions()
        self._start_at_end = start == "end"
        self._max_line_bytes = max_line_bytes
        self._poll = poll
        self._grace = grace
        self._files: dict[str, _Followed] = {}
        self._finished: list[tuple[str, FileId]] = []
        self._warned: set[str] = set()

    def run(self, put: Put, stopping: threading.Event) -> None:
        """As ServiceSource.

        A file that cannot be opened is logged once and tried again.
        """
        next_scan = float("-inf")
        first = True
        try:
            while not stopping.is_set():
                now = time.monotonic()
                if now >= next_scan:
                    self._open_matches(first)
                    first = False
                    next_scan = now + _SCAN_SECONDS
                news = False
                for path, file in list(self._files.items()):
                    outcome = self._put_news(path, file, put, stopping)
                    if outcome is None:
                        return
                    news |= outcome
                if not news:
                    stopping.wait(self._poll)
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _open_matches(self, first: bool) -> None:
        """Open what has appeared."""
        paths = glob.glob(self._pattern) if glob.has_magic(self._pattern) else [self._pattern]
        for path in sorted(paths):
            if path not in self._files:
                file = self._open(path, first)
                if file is not None:
                    self._files[path] = file

    def _open(self, path: str, first: bool) -> _Followed | None:
        """Start to follow `path`, or the file that had this name when it was last read.

        None: there is nothing to open yet.
        """
        before = self._positions.get(path)
        if before is not None:
            known, offset = before
            found = _open_known(path, known)
            if found is not None:
                return _Followed(found, offset)
        fd = self._try_open(path)
        if fd is None:
            return None
        if self._is_known(path, fd):
            os.close(fd)
            return None
        # A file that was read before and is another one now is new.
        at_end = first and self._start_at_end and before is None
        return _Followed(fd, _last_line_start(fd) if at_end else 0)

    def _is_known(self, path: str, fd: int) -> bool:
        """Whether this file is or was followed under another name.

        A pattern may find it again after it was rotated.
        """
        found = os.fstat(fd)
        if any(os.path.samestat(found, os.fstat(file.fd)) for file in self._files.values()):
            return True
        # Under its old name it is a new file that reuses the inode.
        return any(
            known.fits(fd) for old, known in self._finished if old != path and known.head_bytes
        )

    def _try_open(self, path: str) -> int | None:
        try:
            # Non-blocking: opening a named pipe would wait for its writer.
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(path, error.strerror or str(error))
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            self._warn_once(path, "only regular files can be followed")
            return None
        self._warned.discard(path)
        return fd

    def _warn_once(self, path: str, reason: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s: %s; trying again", path, reason)

    def _put_news(
        self, path: str, file: _Followed, put: Put, stopping: threading.Event
    ) -> bool | None:
        """Put what is new in the file.

        Returns whether there was anything; None: the service ends.
        """
        size = os.fstat(file.fd).st_size
        if size < file.offset:
            _log.info("%s: truncated, reading from its beginning", path)
            file.restart()
        if size != file.seen:
            file.seen = size
            file.quiet_since = time.monotonic()
            while not stopping.is_set():
                lines = self._read_lines(file)
                if lines is None:
                    return True
                if lines and not self._put_lines(path, file, lines, put):
                    return None
            return None
        if not _is_still_at(file.fd, path):
            # Renamed or deleted. After a silence its writer has reopened the next file.
            if time.monotonic() - file.quiet_since < self._grace:
                return False
            if not self._put_last_line(path, file, put):
                return None
            self._finished = [*self._finished[-_REMEMBERED:], (path, file.identity())]
            file.close()
            del self._files[path]
            replacement = self._open_new(path)
            if replacement is not None:
                self._files[path] = replacement
            return True
        return False

    def _open_new(self, path: str) -> _Followed | None:
        fd = self._try_open(path)
        return None if fd is None else _Followed(fd, 0)

    def _read_lines(self, file: _Followed) -> bytes | None:
        """The next whole lines from the file's offset on; None: no more.

        b"" where a part of a line that is too long was skipped.
        """
        most = self._max_line_bytes + 1
        want = min(_CHUNK_BYTES, most)
        while True:
            read = os.pread(file.fd, want, file.offset)
            if file.skipping:
                first = read.find(b"\n") + 1
                file.offset += first or len(read)
                file.skipping = not first
                return b"" if read else None
            end = read.rfind(b"\n") + 1
            if end:
                return read[:end]
            if len(read) < want:
                return None  # the end of the file, within a line or not
            if want == most:
                self.oversized += 1
                _log.warning(
                    "%s: the line at byte %d has more than %d bytes: skipped",
                    self.name,
                    file.offset,
                    most - 1,
                )
                file.skipping = True
            else:
                want = min(want * 2, most)

    def _put_lines(self, path: str, file: _Followed, lines: bytes, put: Put) -> bool:
        marks = put(memoryview(lines))
        if marks is None:
            return False
        file.offset += len(lines)
        self._positions.note(path, file.identity(), file.offset, marks)
        return True

    def _put_last_line(self, path: str, file: _Followed, put: Put) -> bool:
        """Put the last line of a complete file, without its newline."""
        rest = b"" if file.skipping else os.pread(file.fd, self._max_line_bytes, file.offset)
        return not rest or self._put_lines(path, file, rest, put)


class _Followed:
    """One open file.

    `offset`: bytes that were put or skipped; always at the start of a line, unless
    `skipping` one that is too long.
    """

    __slots__ = ("_id", "fd", "offset", "quiet_since", "seen", "skipping")

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = offset
        self.seen = -1  # size at the last look
        self.quiet_since = time.monotonic()
        self.skipping = False
        self._id: FileId | None = None

    def restart(self) -> None:
        self.offset, self.seen, self.skipping, self._id = 0, -1, False, None

    def identity(self) -> FileId:
        """The file's id, with a checksum over what was read of its head.

        That part does not change any more. Computed anew while the file is short.
        """
        nbytes = min(self.offset, HEAD_BYTES)
        if self._id is None or self._id.head_bytes != nbytes:
            found = os.fstat(self.fd)
            self._id = FileId(found.st_dev, found.st_ino, head_of(self.fd, nbytes), nbytes)
        return self._id

    def close(self) -> None:
        os.close(self.fd)


def _open_known(path: str, known: FileId) -> int | None:
    """Open the known file, at its path or under another name in the same directory.

    None: it is gone.
    """
    directory = Path(path).parent
    try:
        names = [
            path,
            *(
                entry.path
                for entry in os.scandir(directory)
                if entry.inode() == known.ino and entry.path != path
            ),
        ]
    except OSError:
        return None
    for name in names:
        try:
            fd = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            continue
        if known.fits(fd):
            return fd
        os.close(fd)
    return None


def _is_still_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _last_line_start(fd: int) -> int:
    """Where the last, incomplete line of a file begins.

    Its size where it ends with a newline.
    """
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - _CHUNK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
