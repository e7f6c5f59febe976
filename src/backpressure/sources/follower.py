"""Follower: the files of one pattern, through rotation, truncation and restarts.

It has no thread: `look` finds and opens, `read` reads and puts, and both take the time
by which they wait. How old a file is they tell by the system's clock, as its stamps
are. `FollowSource` (follow.py) calls them from two threads.

Each path has a trail: the files that had its name, oldest first. A file is read to its
end before the next one is; one that has lost its name is at its end once there was no
news for `grace` seconds, since its writer may not have reopened yet. What is written to
it still later is read as well, as long as it exists.

    renamed          the trail holds it by its descriptor, whatever its name
    renamed twice between two looks, or while nobody looked
                     the files beside it with a rotated name that were written since
                     are taken for the generations in between
    truncated, written anew in place
                     noticed by size, head and tail; read from its beginning. A copy
                     that was made before (copytruncate) has what had not been read
    deleted          read to its end, then forgotten
    restart          each file of the state is found by its inode, by whatever name, or
                     as a copy by its content

Where that leaves a doubt, lines come twice.

Any thread may call `look` and any one `read`: a lock guards the trails, and is not held
while lines are put.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from backpressure.base.wording import reason
from backpressure.sources.base import Put
from backpressure.sources.file_id import EVIDENCE_BYTES, Place
from backpressure.sources.followed_file import FollowedFile, LineSkipped, Rewritten
from backpressure.sources.open_files import OpenFiles
from backpressure.sources.patterns import PathPattern
from backpressure.sources.positions import Positions
from backpressure.sources.rotation import (
    directory_and_name,
    is_rotated_name,
    names_by_inode,
    siblings,
)

__all__ = ["Follower"]

_log = logging.getLogger("backpressure")

# Seconds after which a pattern is looked up anew, what is done is looked at, and what
# made trouble is tried again.
_SCAN_SECONDS: Final = 1.0
# Chunks of one file before the next file's turn: one that grows fast must not hold up
# the others.
_TURN_CHUNKS: Final = 16
# A state file is saved up to a second after the scan whose finds it has, and time
# stamps of files lag behind the clock by some milliseconds.
_SLACK_NS: Final = 3 * 10**9
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


class _Trail:
    """The files that had the name `path`, oldest first."""

    __slots__ = ("files", "path", "since_ns")

    def __init__(self, path: str, files: list[FollowedFile]) -> None:
        self.path = path
        self.files = files
        #: When the one that was forgotten last had been written (st_mtime_ns).
        self.since_ns = 0


class Follower:
    """start_at_end: where to begin with files that are there when the pattern is
        followed for the first time. max_line_bytes: what is longer is skipped.
    avoid: the files (device, inode) that are not to be read: the sink's own.
    wall_ns: the clock of the files' time stamps.
    """

    def __init__(
        self,
        pattern: PathPattern,
        positions: Positions,
        *,
        start_at_end: bool,
        max_line_bytes: int,
        grace: float,
        open_files: OpenFiles | None = None,
        avoid: Callable[[], Collection[tuple[int, int]]] = lambda: (),
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._pattern = pattern
        self._positions = positions
        self._start_at_end = start_at_end
        self._max_line_bytes = max_line_bytes
        self._grace = grace
        self._open_files = open_files or OpenFiles()
        self._avoid = avoid
        self._wall_ns = wall_ns
        #: Lines skipped because they were too long.
        self.oversized = 0
        self._lock = threading.Lock()
        self._trails: dict[str, _Trail] = {}
        self._next_scan = float("-inf")
        self._begun = False
        self._known_pattern = False
        # Paths of the state that could not be looked at yet.
        self._waiting: list[str] = []
        # When it was last known what was there, as time.time_ns(); a path that has
        # appeared since may have been rotated since, too.
        self._scanned_ns = positions.saved_ns - _SLACK_NS
        self._warned: dict[str, str] = {}

    def look(self, now: float) -> None:
        """Find what has appeared, and open it; note what has lost its name."""
        if now >= self._next_scan:
            matched = self._pattern.find()  # without the lock: it may take long
            with self._lock:
                self._scan(matched, now)
        with self._lock:
            for trail in list(self._trails.values()):
                try:
                    self._look_at(trail, now)
                except OSError as error:
                    self._trouble(trail.path, error)

    def read(self, put: Put, stopping: Callable[[], bool], now: float) -> bool | None:
        """Put what is new. Whether there was anything; None: the service ends."""
        news = False
        with self._lock:
            trails = list(self._trails.values())
        for trail in trails:
            for _ in range(_TURN_CHUNKS):
                if stopping():
                    return None
                with self._lock:
                    file, lines = self._next_lines(trail, now)
                if file is None:
                    break
                news = True
                if not lines:
                    continue
                marks = put(memoryview(lines))
                if marks is None:
                    return None
                with self._lock:
                    file.took(lines)
                    self._positions.note(trail.path, file.place, marks)
        with self._lock:
            self._close_idle()
        return news

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for trail in self._trails.values():
                for file in trail.files:
                    self._close(file)
            self._trails.clear()

    # ------------------------------------------------------------ look: new paths

    def _scan(self, matched: list[str], now: float) -> None:
        """Begin a trail for each path that has appeared."""
        self._next_scan = now + _SCAN_SECONDS
        first, self._begun = not self._begun, True
        scanned_ns = self._wall_ns() - _SLACK_NS
        paths = [*matched, *self._waiting]
        if first:
            earlier = [path for path in self._positions.paths() if self._pattern.matches(path)]
            # A state file of version 1 does not tell the patterns.
            self._known_pattern = self._positions.begin(self._pattern.text) or bool(earlier)
            paths += earlier
            if not any(map(os.path.lexists, matched)):
                _log.warning("%s: no file matches; waiting for one", self._pattern.text)
        self._waiting = []
        for path, trail in list(self._trails.items()):
            # Not before its place is forgotten: else it would be looked for.
            if not trail.files and not self._positions.get(path):
                try:
                    if not self._fill_before(trail, None, now):
                        del self._trails[path]
                except OSError as error:
                    self._trouble(path, error)
        known = {(file.dev, file.ino) for file in self._all_files()}
        for path in dict.fromkeys(paths):
            if path in self._trails:
                continue
            try:
                files = self._begin(path, set(matched), known, first, now)
            except OSError as error:
                self._trouble(path, error)
                self._waiting.append(path)
                continue
            if files:
                self._trails[path] = _Trail(path, files)
        self._scanned_ns = scanned_ns

    def _begin(
        self,
        path: str,
        matched: set[str],
        known: set[tuple[int, int]],
        first: bool,
        now: float,
    ) -> list[FollowedFile]:
        """The files to read under a path that is not followed yet, oldest first.

        known: the files that are followed; those that are found are added.
        """
        places = self._positions.get(path)
        files, gone = self._files_of(path, places, now)
        known.update((file.dev, file.ino) for file in files)
        current = next((file for file in files if self._is_at(file, path)), None)
        if current is not None:
            files.remove(current)
        else:
            current = self._open_new(path, known, now)
            if current is not None:
                known.add((current.dev, current.ino))
                if first and self._start_at_end and not self._known_pattern:
                    self._skip_to_end(current)
        if places:
            newest = max(places, key=lambda one: one.mtime_ns)
            files += self._missed(path, newest, newest.mtime_ns, known, now)
        elif current is not None:
            if not first or self._known_pattern:
                files += self._missed(path, None, self._scanned_ns, known, now)
            files += self._rotated_before(path, matched, known, now)
        for file in files:
            file.at_path = False
        if current is not None:
            current.come_back()
            files.append(current)
        for file in files:
            self._positions.note(path, file.place)
        # After the notes: at any moment the state has one or the other.
        kept = {(file.dev, file.ino, file.generation) for file in files}
        for place in gone:
            if (place.file.dev, place.file.ino, place.file.generation) not in kept:
                self._positions.forget(path, place.file)
        return files

    def _files_of(
        self, path: str, places: list[Place], now: float
    ) -> tuple[list[FollowedFile], list[Place]]:
        """The files of the state that still exist, by whatever name, and the places of
        those that do not. OSError: it cannot be known now.
        """
        if not places:
            return [], []
        try:
            names = names_by_inode(path, {place.file.ino for place in places})
        except (FileNotFoundError, NotADirectoryError):
            if path in self._pattern.alternatives:
                raise  # not mounted yet
            names = {}
        files, gone = [], []
        for place in places:
            file = self._find(path, place, names.get(place.file.ino, []), now)
            if file is not None:
                file.done = place.done
                file.quiet_since = now - _age(file)
                files.append(file)
                continue
            gone.append(place)
            if not place.done:
                _log.warning(
                    "%s: the file that was read to byte %d is gone, or was written anew; what "
                    "was written to it since, and was not copied beside it, is missed",
                    path,
                    place.offset,
                )
        return files, gone

    def _find(
        self, path: str, place: Place, names: Collection[str], now: float
    ) -> FollowedFile | None:
        """Open the file of a place: at its path, or where its inode is."""
        base = directory_and_name(path)[1]
        for name in dict.fromkeys([path, *names]):
            fd = self._open(name)
            if fd is None:
                continue
            try:
                named = name == path or is_rotated_name(os.path.basename(name), base)
                fits = place.fits(fd) and (
                    # Else an inode that was given out again, with the same first line.
                    named or place.file.generation > 0 or place.file.head_bytes >= EVIDENCE_BYTES
                )
                if fits:
                    return self._followed(fd, name, place.offset, now)
                if named and name != path and place.file.has_inode(fd):
                    # Written anew, and then rotated.
                    return self._followed(fd, name, 0, now)
            except BaseException:
                self._close_fd(fd)
                raise
            self._close_fd(fd)
        return None

    def _missed(
        self,
        path: str,
        place: Place | None,
        since_ns: int,
        known: set[tuple[int, int]],
        now: float,
    ) -> list[FollowedFile]:
        """The generations of `path` written since then at which nobody looked.

        place: of the newest one that was read; a copy of that is read on from there.
        """
        files = []
        closed = {(file.dev, file.ino): file for file in self._all_files() if file.fd is None}
        for one in siblings(path):
            inode = one.found.st_dev, one.found.st_ino
            if one.found.st_mtime_ns < since_ns:
                continue
            if inode in known and not self._is_other(closed.get(inode), one.path):
                continue
            if one.compressed:
                if self._warned.get(one.path) != "compressed":
                    self._warned[one.path] = "compressed"
                    _log.warning(
                        "%s: compressed before all of it was read, and not read now: "
                        "let logrotate compress later (delaycompress)",
                        one.path,
                    )
                continue
            fd = self._open(one.path)
            if fd is None:
                continue
            offset = place.offset if place is not None and place.is_copied_to(fd) else 0
            file = self._followed(fd, one.path, offset, now)
            file.at_path = False
            file.quiet_since = now - _age(file)
            _log.info("%s: an earlier file of %s, read from byte %d", one.path, path, file.offset)
            known.add(inode)
            files.append(file)
        return files

    def _is_other(self, file: FollowedFile | None, path: str) -> bool:
        """Whether `path` has the number of that file's inode, and is another one: the
        file was closed, and then deleted.
        """
        fd = None if file is None else self._open(path)
        if file is None or fd is None:
            return False
        try:
            return not file.place.file.has_inode(fd)
        finally:
            self._close_fd(fd)

    def _rotated_before(
        self, path: str, matched: set[str], known: set[tuple[int, int]], now: float
    ) -> list[FollowedFile]:
        """What had been rotated before this path was followed: only what is still
        written to it is read.
        """
        files = []
        for one in siblings(path):
            if one.compressed or one.path in matched:
                continue
            if (one.found.st_dev, one.found.st_ino) in known:
                continue
            fd = self._open(one.path)
            if fd is None:
                continue
            file = self._followed(fd, one.path, 0, now)
            self._skip_to_end(file)
            file.done = True
            known.add((file.dev, file.ino))
            files.append(file)
        return files

    # ------------------------------------------------------------ look: known paths

    def _look_at(self, trail: _Trail, now: float) -> None:
        """Note what has become of the trail's path."""
        path = trail.path
        newest = trail.files[-1] if trail.files else None
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if newest is not None:
                newest.leave(now)
            return
        if newest is not None and newest.has_inode_of(found):
            if not newest.at_path:
                newest.come_back()
            newest.name = path
            if not newest.head and found.st_size:
                self._fill_before(trail, newest, now)
            newest.watch(found)
            return
        again = next((one for one in trail.files if one.has_inode_of(found)), None)
        if again is not None and again.fd is not None:
            trail.files.remove(again)  # it has got its name back
            fresh = again
        else:
            known = {(file.dev, file.ino) for file in self._all_files() if file.fd is not None}
            opened = self._open_new(path, known, now)
            if opened is None:
                if newest is not None:
                    newest.leave(now)
                return
            fresh = opened
            place = None if newest is None else newest.place
            since_ns = trail.since_ns if place is None else place.mtime_ns
            everything = {(file.dev, file.ino) for file in self._all_files()}
            everything.add((fresh.dev, fresh.ino))
            trail.files += self._missed(path, place, since_ns, everything, now)
        for file in trail.files:
            file.leave(now)
        fresh.come_back()
        trail.files.append(fresh)
        for file in trail.files:
            self._positions.note(path, file.place)

    def _fill_before(self, trail: _Trail, file: FollowedFile | None, now: float) -> bool:
        """Put what is missed before a file that was empty at the last look, or into an
        empty trail. Whether there is anything.

        The file may have been filled, copied and truncated since: nothing in it would
        tell.
        """
        since_ns = trail.since_ns if file is None else file.mtime_ns
        known = {(one.dev, one.ino) for one in self._all_files()}
        missed = self._missed(trail.path, None, since_ns, known, now)
        place = 0 if file is None else trail.files.index(file)
        trail.files[place:place] = missed
        for one in missed:
            self._positions.note(trail.path, one.place)
        return bool(missed)

    def _open_new(
        self, path: str, known: Collection[tuple[int, int]], now: float
    ) -> FollowedFile | None:
        """Open the file at `path`, unless it is followed already, under any name."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (found.st_dev, found.st_ino) in known:
            return None
        if (found.st_dev, found.st_ino) in self._avoid():
            self._warn(path, "this is what the sink writes to: not followed")
            return None
        fd = self._open(path)
        if fd is None:
            return None
        return self._followed(fd, path, 0, now)

    def _is_at(self, file: FollowedFile, path: str) -> bool:
        try:
            return file.has_inode_of(os.stat(path))
        except OSError:
            return False

    # ------------------------------------------------------------ read

    def _next_lines(self, trail: _Trail, now: float) -> tuple[FollowedFile | None, bytes]:
        """The next lines of a trail; b"" where a part was passed over, or it has to be
        looked at again. No file: nothing for now.
        """
        for file in list(trail.files):
            if now < file.retry_at:
                if not file.done:
                    break
                continue
            try:
                lines = self._lines_of(trail, file, now)
                if lines is None and not file.at_path:
                    lines = self._finish(trail, file, now)
            except OSError as error:
                self._trouble(trail.path, error)
                file.retry_at = now + _SCAN_SECONDS
                if error.errno == errno.ESTALE:
                    self._close(file)
                lines = None
            if lines is not None:
                return file, lines
            if not file.done:
                break  # the newer ones wait for its end
        return None, b""

    def _lines_of(self, trail: _Trail, file: FollowedFile, now: float) -> bytes | None:
        """As FollowedFile.next_lines, of a file that may have been closed or written
        anew.
        """
        if file.fd is None and not self._reopen(trail, file, now):
            return None
        assert file.fd is not None
        try:
            found = os.fstat(file.fd)
            if file.is_unchanged(found):
                return None
            if file.at_path and not self._is_at(file, trail.path):
                file.leave(now)  # what is written from here on is of a file that was rotated
            empty = not file.head and file.at_path
            if empty and found.st_size and self._fill_before(trail, file, now):
                return b""  # that is older
            file.look(found, now)
            lines = file.next_lines(self._max_line_bytes)
        except Rewritten:
            self._was_rewritten(trail, file, now)
            return b""
        except LineSkipped as skipped:
            self.oversized += 1
            _log.warning(
                "%s: the line at byte %d has more than %d bytes: skipped",
                trail.path,
                skipped.offset,
                self._max_line_bytes,
            )
            return b""
        if self._warned and not file.done:
            self._warned.pop(trail.path, None)
        return lines

    def _finish(self, trail: _Trail, file: FollowedFile, now: float) -> bytes | None:
        """What is left of a file that has lost its name, once its writer is through."""
        if file.fd is None:
            return None
        if not file.done:
            if now - file.quiet_since < self._grace:
                return None
            rest = file.last_line(self._max_line_bytes)
            if rest:
                return rest
            file.done = True
            self._positions.note(trail.path, file.place)
        file.retry_at = now + _SCAN_SECONDS
        if not os.fstat(file.fd).st_nlink:
            self._drop(trail, file)
        return None

    def _was_rewritten(self, trail: _Trail, file: FollowedFile, now: float) -> None:
        """Read the file from its beginning, after what a copy of it has."""
        before, unread = file.place, file.size - file.offset
        known = {(one.dev, one.ino) for one in self._all_files()}
        missed = self._missed(trail.path, before, before.mtime_ns, known, now)
        _log.info("%s: written anew, or truncated: read from its beginning", trail.path)
        if unread > 0 and not missed:
            _log.warning(
                "%s: %d bytes or more were not read before that, and are in no file beside it: "
                "missed",
                trail.path,
                unread,
            )
        file.restart(now)
        place = trail.files.index(file)
        trail.files[place:place] = missed
        for one in (*missed, file):
            self._positions.note(trail.path, one.place)

    def _reopen(self, trail: _Trail, file: FollowedFile, now: float) -> bool:
        """Open a file again that was closed, where there is news of it."""
        place = file.place
        try:
            found = os.stat(file.name)
            # One that has lost its name is not at its end before it is looked at.
            settled = file.at_path or file.done
            if settled and file.has_inode_of(found) and file.is_unchanged(found):
                if file.done:
                    file.retry_at = now + _SCAN_SECONDS
                return False
        except (FileNotFoundError, NotADirectoryError):
            found = None
        same = found is not None and file.has_inode_of(found)
        names = [file.name] if same else []
        if not names:
            try:
                names = names_by_inode(trail.path, {file.ino}).get(file.ino, [])
            except (FileNotFoundError, NotADirectoryError):
                names = []
        for name in names:
            fd = self._open(name)
            if fd is None:
                continue
            # Another content of the same inode is a file written anew: reading tells.
            named = is_rotated_name(os.path.basename(name), directory_and_name(trail.path)[1])
            if place.fits(fd) or ((same or named) and place.file.has_inode(fd)):
                file.reopen(fd, name)
                return True
            self._close_fd(fd)
        self._drop(trail, file)
        if not file.caught_up or file.size > file.offset:
            _log.warning(
                "%s: deleted while it was not open; what stood behind byte %d is missed",
                file.name,
                file.offset,
            )
        return False

    def _drop(self, trail: _Trail, file: FollowedFile) -> None:
        """It is gone."""
        place = file.place
        self._close(file)
        trail.files.remove(file)
        trail.since_ns = file.mtime_ns
        self._positions.forget(trail.path, place.file)

    # ------------------------------------------------------------ descriptors

    def _all_files(self) -> list[FollowedFile]:
        return [file for trail in self._trails.values() for file in trail.files]

    def _open(self, path: str) -> int | None:
        """Open a regular file; None: there is none. OSError: not now."""
        try:
            # Non-blocking: opening a named pipe would wait for its writer.
            fd = os.open(path, _READ)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self._open_files.ran_out()
                self._close_idle()
            raise
        self._open_files.count(1)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self._close_fd(fd)
            self._warn(path, "only regular files can be followed")
            return None
        return fd

    def _followed(self, fd: int, name: str, offset: int, now: float) -> FollowedFile:
        try:
            return FollowedFile(fd, name, offset, now)
        except BaseException:
            self._close_fd(fd)
            raise

    def _skip_to_end(self, file: FollowedFile) -> None:
        """Begin with the last, incomplete line of a file."""
        assert file.fd is not None
        file.begin_at(_last_line_start(file.fd))

    def _close_fd(self, fd: int) -> None:
        os.close(fd)
        self._open_files.count(-1)

    def _close(self, file: FollowedFile) -> None:
        if file.fd is not None:
            self._open_files.count(-1)
            file.close()

    def _close_idle(self) -> None:
        """Close files without news, where too many are open; the longest idle first."""
        excess = self._open_files.excess
        if not excess:
            return
        idle = [file for file in self._all_files() if file.can_be_closed]
        for file in sorted(idle, key=lambda one: (not one.done, one.quiet_since)):
            if excess <= 0:
                break
            assert file.fd is not None
            if os.fstat(file.fd).st_nlink:  # else it could not be opened again
                self._close(file)
                excess -= 1

    # ------------------------------------------------------------ what is said

    def _trouble(self, path: str, error: OSError) -> None:
        self._warn(path, f"{reason(error)}; trying again")

    def _warn(self, path: str, text: str) -> None:
        """Once for each path, until it is well."""
        if self._warned.get(path) != text:
            self._warned[path] = text
            _log.warning("%s: %s", path, text.removeprefix(f"{path}: "))


def _age(file: FollowedFile) -> float:
    """Seconds since the file was written."""
    return max(0.0, time.time() - file.mtime_ns / 1e9)


def _last_line_start(fd: int) -> int:
    """Where the last, incomplete line of a file begins.

    Its size where it ends with a newline.
    """
    step = 256 * 1024
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - step)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
