"""Writer: the newest segment of a lane, what is appended to it, when it is durable.

Invariants

 1. The position of the next block is kept here. So a write that failed half-way leaves
    nothing that counts, and the next one goes over it.
 2. A segment is durable before its successor exists, or everything in it is settled,
    durably.
 3. After an fsync that failed, the file is never written to or synced again: what was
    not durable is read back, checked, and written into a new file, which supersedes the
    old one.

For one thread at a time; only `view` and drop_oldest are safe for any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

import numpy as np
import numpy.typing as npt

from backpressure.spill.blocks import (
    BLOCK_HEADER_BYTES,
    BlockHeader,
    Body,
    Encoder,
    Link,
    frame_block,
    narrow,
    stored_is_sound,
)
from backpressure.spill.budget import DiskBudget
from backpressure.spill.config import SpillConfig
from backpressure.spill.files import CREATE, WRITE, Files
from backpressure.spill.reader import View
from backpressure.spill.segments import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentFile,
    Unreadable,
    frame_segment_header,
)

__all__ = ["Writer", "level_for"]

# (up to this pressure, this zstd level); above, no compression. slowest_level may
# forbid the first. On an access log -5 takes 0.8 times as long as 1 and stores 45 %
# more.
_LEVELS = ((0.25, 3), (0.6, 1), (0.95, -5))


def level_for(pressure: float, config: SpillConfig) -> int | None:
    """The zstd level for a pressure from 0 to 1; None: no compression.

    It is within the config's bounds.
    """
    level = next((level for limit, level in _LEVELS if pressure <= limit), None)
    if level is None:
        return config.fastest_level
    return max(
        min(level, config.slowest_level),
        -100 if config.fastest_level is None else config.fastest_level,
    )


class Writer:
    """Appends to the newest segment and begins new ones."""

    def __init__(
        self,
        files: Files,
        directory: str,
        lane: int,
        buffer_id: UUID,
        config: SpillConfig,
        segments: tuple[Segment, ...],
        link: Link,
        end_seq: int,
        budgets: Sequence[DiskBudget] = (),
    ) -> None:
        self._files = files
        self._directory = directory
        self._lane = lane
        self._buffer_id = buffer_id
        self._config = config
        self._budgets = tuple(budgets)
        self._segment_bytes = config.segment_bytes
        self._encoder = Encoder()
        # Held while `view` is replaced: one thread appends while another, which acks,
        # drops the oldest segments.
        self._changing = threading.Lock()
        #: The number after the last one that is stored or was ever settled: the lowest
        #: that may be appended.
        self.end_seq = end_seq
        self.view = View(segments, segments[-1].size if segments else 0, link)
        # What is durable of an earlier process's newest file is unknown; of the files
        # before it, everything is.
        self._durable_size = SEGMENT_HEADER_BYTES
        #: Where the durable part of the lane ends.
        self.durable = segments[-1].link if segments else link
        self._fd: int | None = None
        self._next_serial = segments[-1].serial + 1 if segments else 0
        # Whether the newest file takes no more blocks: it is an earlier process's, or
        # failed.
        self._closed = True
        self._failed = False  # its fsync has
        #: Sum of all segments' sizes.
        self.nbytes = sum(segment.size for segment in segments)
        #: What other files take of max_disk_bytes.
        self.other_bytes = 0
        # Totals since the start.
        self.appended_events = 0
        self.raw_bytes = 0
        self.stored_bytes = 0
        self.failed_syncs = 0

    @property
    def is_durable(self) -> bool:
        """Whether everything that was appended is."""
        return self.durable.rank == self.view.end.rank

    def close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None
        self._closed = True

    # ------------------------------------------------------------ appending

    def append(
        self,
        first_seq: int,
        data: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        level: int | None,
        time_ns: int,
    ) -> None:
        """Write block after block.

        After OSError or DiskFull `end_seq` says how far it came.
        """
        count = len(lengths)
        block_bytes = self._config.block_bytes
        # Otherwise the lengths of tiny events could take several times block_bytes.
        most = block_bytes // 4
        payload = data.data
        narrowed = narrow(lengths)
        at = 0
        while at < count:
            start = int(offsets[at])
            stop = int(np.searchsorted(offsets, start + block_bytes, "right")) - 1
            # Empty events at the end of the block belong to it; an event larger than a
            # block has one of its own.
            stop = max(min(stop, at + most, count), at + 1)
            end = int(offsets[stop])
            self._check_room(0)
            self._append_block(
                self._encoder.encode(payload[start:end], narrowed[at:stop], level),
                first_seq + at,
                time_ns,
            )
            self.raw_bytes += end - start
            self.appended_events += stop - at
            at = stop

    def _append_block(self, body: Body, first_seq: int, time_ns: int) -> None:
        size = BLOCK_HEADER_BYTES + body.stored_length + 7
        # It may begin a file.
        self._check_room(SEGMENT_HEADER_BYTES + size)
        if self._failed:
            self.sync()
        if self._closed or (
            self.view.size > SEGMENT_HEADER_BYTES and self.view.size + size > self._segment_bytes
        ):
            self.begin_segment(first_seq)
        assert self._fd is not None
        segments, position, end = self.view
        link = end if end.rank else Link(first_seq, first_seq, 0)
        block = frame_block(body, segments[-1].salt, position, first_seq, link, time_ns)
        try:
            self._files.write(self._fd, block, position)
        except OSError:
            self._cut_file(position)
            raise
        with self._changing:
            after = Link(first_seq, first_seq + body.events, end.rank + body.events)
            end_seq, written = after.end, len(block)
            view = View(self.view.segments, position + written, after)
            # Without a call from here on: no signal's handler can raise in between.
            self.view = view
            self.end_seq = end_seq
            self.nbytes += written
            self.stored_bytes += written

    def _check_room(self, size: int) -> None:
        for budget in self._budgets:
            budget.check(size)

    def _cut_file(self, size: int) -> None:
        """Give back the room of a block that was written in part.

        Where that fails, the next block goes over it.
        """
        assert self._fd is not None
        try:
            self._files.truncate(self._fd, size)
        except OSError:
            pass

    # ------------------------------------------------------------ durability

    def sync(self) -> None:
        """Make durable everything that was appended. Raises OSError."""
        if self.is_durable:
            return
        if self._failed:
            self._supersede_failed()
            return
        segments, size, end = self.view
        try:
            if self._fd is None:
                self._fd = self._files.open(os.path.join(self._directory, segments[-1].name), WRITE)
                # What lies behind the last sound block is torn.
                self._files.truncate(self._fd, size)
            self._files.fdatasync(self._fd)
        except OSError:
            self.failed_syncs += 1
            self._failed = self._closed = True
            self._supersede_failed()
            return
        self.durable = end
        self._durable_size = size

    def begin_segment(self, base: int) -> None:
        """Begin the next segment, after the newest was made durable."""
        self.sync()
        self._begin_file(base, self.view.end, ())

    def restart(self) -> None:
        """Begin the next segment without making the newest durable.

        Everything in the newest is settled, durably.
        """
        self._begin_file(self.end_seq, self.view.end, ())

    def _supersede_failed(self) -> None:
        """Write what is not durable into a new file, as read back from the old one."""
        old = self.view.segments[-1]
        reader = SegmentFile(self._files, os.path.join(self._directory, old.name), old.salt)
        try:
            self._begin_file(
                max(self.durable.end, old.base), self.durable, self._read_not_durable(reader)
            )
        finally:
            reader.close()

    def _begin_file(
        self, base: int, link: Link, blocks: Iterable[tuple[Body, BlockHeader]]
    ) -> None:
        """Begin a file with these blocks; it is durable before it has its name."""
        segment = Segment(
            self._next_serial, base, self._files.random_bytes(8), link, SEGMENT_HEADER_BYTES
        )
        # Also where this fails: a file with this serial may be left.
        self._next_serial += 1
        path = os.path.join(self._directory, segment.name)
        fresh = path + ".tmp"
        fd = self._files.open(fresh, CREATE)
        try:
            self._files.write(fd, frame_segment_header(self._lane, self._buffer_id, segment), 0)
            size = SEGMENT_HEADER_BYTES
            for body, header in blocks:
                block = frame_block(
                    body, segment.salt, size, header.first_seq, header.link, header.time_ns
                )
                self._files.write(fd, block, size)
                size += len(block)
            self._files.fsync(fd)
            self._files.rename(fresh, path)
            self._files.sync_directory(self._directory)
        except BaseException:
            self._files.close(fd)
            # They hold nothing that counts, and their successor supersedes them.
            self._files.try_unlink(fresh)
            self._files.try_unlink(path)
            # If it had its name already, power loss may bring it back, as the newest
            # file, which says where the one before it ended. So nothing more goes into
            # that one; the next file, whose serial is higher, supersedes both.
            self._closed = True
            raise
        if self._fd is not None:
            self._files.close(self._fd)
        with self._changing:
            before, old_size, end = self.view
            if before:
                before = (*before[:-1], before[-1]._replace(size=old_size))
            self.view = View((*before, segment), size, end)
            self.nbytes += size
        self._fd = fd
        self._closed = self._failed = False
        self._durable_size = size
        self.durable = end

    def drop_oldest(self, count: int) -> None:
        """Forget the oldest segments, whose files are gone."""
        with self._changing:
            segments, size, end = self.view
            self.nbytes -= sum(segment.size for segment in segments[:count])
            self.view = View(segments[count:], size, end)

    def _read_not_durable(self, reader: SegmentFile) -> Iterator[tuple[Body, BlockHeader]]:
        """The sound blocks behind the durable part of the newest file."""
        at = self._durable_size
        limit = self.view.size
        while at < limit:
            header = reader.header_at(at, limit) or reader.next_header(at + 8, limit)
            if header is None:
                return
            at = header.end_position
            try:
                block = reader.block(header)
            except Unreadable:
                continue
            # A damaged block is left out; the link of the next one shows it.
            if stored_is_sound(block, header):
                stored = block[BLOCK_HEADER_BYTES : BLOCK_HEADER_BYTES + header.stored_length]
                yield (
                    Body(header.codec, header.width, header.events, header.raw_length, (stored,)),
                    header,
                )
