"""SpillStore: the events of one lane that are on disk.

    first_seq ......... read ......... durable_seq ......... end_seq

What is appended is read from any number on, acked in any order, and gone from disk when
a whole segment is acked and the record of that is durable. The format, its invariants
and its recovery are at the head of blocks.py, segments.py and ledger.py.

Invariants

 1. What append() returned from is read again until it is acked, also after the death of
    the process; what lies below `durable_seq`, also after power loss. Damage on the
    disk costs the blocks that it hits, and read() reports each such range once.
 2. stored = acked + lost + events_on_disk, in events, since the lane began.
 3. An error leaves the store as it was before the block, record or file that could not
    be written. The next call tries again; no failure is latched, and no fsync is
    retried on a file where one failed.

Safe for threads: one may append while others read and ack. Appending and reading take
different locks, so that neither waits for the other's compression. The order of locks
is writing, reading, settling.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from types import TracebackType
from uuid import UUID

import numpy as np
import numpy.typing as npt

from backpressure.base.errors import BufferClosed, DiskFull
from backpressure.spill.blocks import MAX_EVENT_BYTES
from backpressure.spill.config import SpillConfig
from backpressure.spill.files import CREATE, FULL, Files, FileSystem, LocalFileSystem, refusal
from backpressure.spill.ledger import Ledger
from backpressure.spill.reader import Gap, Lost, Missing, Reader, Run
from backpressure.spill.recovery import (
    QUARANTINE_SUFFIX,
    end_seq_of,
    missing_tail_of,
    recover,
    settled_of,
    speaks_of_what_is_gone,
)
from backpressure.spill.segments import Segment
from backpressure.spill.stats import SpillStats
from backpressure.spill.writer import Writer, level_for

__all__ = ["SpillStore"]

_RESERVE_NAME = "reserve"
# A lane that has caught up gives its newest file back from this size on: below, a new
# file costs more than it frees.
_RESTART_BYTES = 1 << 20
_LAST_SEQ = (1 << 64) - 1


class SpillStore:
    """The disk tier of one lane. `directory` exists and belongs to this store alone
    (see directory.py).
    """

    def __init__(
        self, directory: str | os.PathLike[str], lane: int, buffer_id: UUID, config: SpillConfig | None = None,
        fs: FileSystem | None = None,
    ) -> None:  # fmt: skip
        """Open what is there, or begin.

        Raises FormatError for files of a later version or of another buffer, which it
        leaves untouched, and DiskFailed or DiskFull where the file system refuses; the
        same call may be tried again.
        """
        self.directory = os.fspath(directory)
        self.lane = lane
        self.config = config or SpillConfig()
        self._files = Files(fs or LocalFileSystem())
        self._writing = threading.RLock()
        self._reading = threading.Lock()
        self._settling = threading.Lock()
        self._closed = False
        try:
            found = recover(self._files, self.directory, lane, buffer_id)
        except OSError as error:
            raise refusal(f"can not open {self.directory}", error) from error
        self._settled = settled_of(found)
        self._writer = Writer(
            self._files,
            self.directory,
            lane,
            buffer_id,
            self.config,
            found.segments,
            found.link,
            end_seq_of(found),
        )
        self._reader = Reader(self._files, self.directory)
        self._ledger = Ledger(
            self._files, self.directory, lane, buffer_id, self.config.ack_record_bytes, found.record
        )
        self._damaged: set[int] = {
            segment.serial for segment in found.segments if not segment.sound
        }
        self._quarantined = list(found.quarantined)
        self._has_reserve = False
        self._torn_bytes = found.torn_bytes
        self._damaged_headers = found.damaged_headers
        self._acked_events = 0
        self._lost_events = 0
        self._lost_ranges = 0
        self._failed_acks = 0
        self._refused_full = 0
        #: What was durable once and is missing at the end of the newest file: to be
        #: reported before anything else.
        self._missing_tail = missing_tail_of(found)
        for name in found.leftovers:
            self._remove(name)
        self._make_reserve()
        self._count_other_bytes()
        if speaks_of_what_is_gone(found):
            # Else, when there are other events behind it, it would count those that are
            # gone among them.
            try:
                self._with_reserve(lambda: self._ledger.write(self._settled, self._writer.durable))
                self._with_reserve(self._ledger.sync)
            except OSError as error:
                self._ledger.close()
                raise refusal(f"can not write the ack record in {self.directory}", error) from error

    # ------------------------------------------------------------ what there is

    @property
    def end_seq(self) -> int:
        """The number after the last one that was stored or settled: the least that can
        be appended.
        """
        return self._writer.end_seq

    @property
    def first_seq(self) -> int:
        """The oldest number that is not settled; `end_seq` where all are."""
        with self._settling:
            return self._first_seq()

    @property
    def durable_seq(self) -> int:
        """Events below it survive power loss."""
        writer = self._writer
        return writer.end_seq if writer.is_durable else writer.durable.end

    @property
    def events_on_disk(self) -> int:
        """Stored and neither acked nor lost."""
        with self._settling:
            return self._events_on_disk()

    @property
    def bytes_on_disk(self) -> int:
        """All files of the lane together; what max_disk_bytes limits."""
        return self._writer.nbytes + self._writer.other_bytes

    def stats(self) -> SpillStats:
        """A snapshot."""
        writer = self._writer
        with self._settling:
            return SpillStats(
                first_seq=self._first_seq(),
                end_seq=writer.end_seq,
                durable_seq=self.durable_seq,
                events_on_disk=self._events_on_disk(),
                bytes_on_disk=self.bytes_on_disk,
                segments=len(writer.view.segments),
                acked_ranges=len(self._settled),
                appended_events=writer.appended_events,
                appended_bytes=writer.raw_bytes,
                stored_bytes=writer.stored_bytes,
                acked_events=self._acked_events,
                lost_events=self._lost_events,
                lost_ranges=self._lost_ranges,
                torn_bytes=self._torn_bytes,
                damaged_headers=self._damaged_headers,
                quarantined_segments=len(self._quarantined),
                quarantined_bytes=sum(size for _, size in self._quarantined),
                failed_syncs=writer.failed_syncs,
                failed_acks=self._failed_acks,
                refused_full=self._refused_full,
            )

    # ------------------------------------------------------------ writing

    def append(
        self,
        first_seq: int,
        data: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        pressure: float = 0.0,
        time_ns: int = 0,
    ) -> None:
        """Store events with consecutive numbers from `first_seq` on, which is `end_seq`
        or more; what is left out is a gap.

        Event i is data[offsets[i]:offsets[i + 1]]. `pressure` from 0 to 1 chooses how
        much time compression may take; `time_ns` since 1970 is kept with the events.
        They are stored block by block: after DiskFull or DiskFailed `end_seq` says up
        to where, and the rest is to be given again. Not durable before sync().
        """
        lengths = _lengths_of(data, offsets)
        if not 0 <= time_ns <= _LAST_SEQ:
            raise ValueError(f"time_ns: must be from 0 to {_LAST_SEQ:,}, not {time_ns}")
        if not 0.0 <= pressure <= 1.0:
            raise ValueError(f"pressure: must be from 0 to 1, not {pressure!r}")
        with self._writing:
            self._check_open()
            writer = self._writer
            if not writer.end_seq <= first_seq <= _LAST_SEQ - len(lengths):
                raise ValueError(
                    f"first_seq: must be from end_seq ({writer.end_seq}) to {_LAST_SEQ - len(lengths)}, not {first_seq}"
                )
            if len(lengths) == 0:
                return
            with self._settling:
                # Asked before: what is appended now may be read and acked before
                # append() has come back.
                nothing_waits = self._settled.events == writer.view.end.rank
            level = level_for(pressure, self.config)
            try:
                self._attempt(
                    "append to",
                    lambda: writer.append(first_seq, data, offsets, lengths, level, time_ns),
                )
            finally:
                # If nothing waited, the numbers left out are settled. Otherwise the
                # reader will come to the gap.
                if nothing_waits and writer.end_seq > first_seq:
                    with self._settling:
                        self._settled.settle(self._settled.seq, first_seq, 0)

    def sync(self) -> None:
        """Make durable what was appended. Raises DiskFull or DiskFailed, and then
        durable_seq stays.
        """
        with self._writing:
            self._check_open()
            self._attempt("sync", self._writer.sync)

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, DiskFull) as error:
            refused = (
                error
                if isinstance(error, DiskFull)
                else refusal(f"can not {what} {self.directory}", error)
            )
            if isinstance(refused, DiskFull):
                self._refused_full += 1
                self._free_room()
            if refused is error:
                raise
            raise refused from error

    # ------------------------------------------------------------ reading

    def read(self, from_seq: int, max_events: int, max_bytes: int) -> Run | Lost | None:
        """Events from `from_seq` on, or from the first one after it that is not
        settled; None where there is none.

        At most max_events, and at most max_bytes of payload unless one event alone is
        larger. A Run ends before a number that is settled, a gap or damage. Lost
        reports such damage, once: its numbers are settled then. Raises DiskFailed where
        the file system refuses for another reason than damage.
        """
        if max_events < 1 or max_bytes < 0:
            raise ValueError(
                f"max_events must be 1 or more and max_bytes 0 or more, not {max_events} and {max_bytes}"
            )
        with self._reading:
            self._check_open()
            try:
                return self._read(from_seq, max_events, max_bytes)
            except OSError as error:
                raise refusal(f"can not read {self.directory}", error) from error

    def _read(self, seq: int, max_events: int, max_bytes: int) -> Run | Lost | None:
        if self._missing_tail is not None:
            lost, self._missing_tail = self._missing_tail, None
            self._lost_events += lost.events
            self._lost_ranges += 1
            return lost
        while True:
            with self._settling:
                seq = self._settled.next_open(seq)
                stop = self._settled.next_settled(seq)
            view = self._writer.view
            found = self._reader.read(
                seq, _LAST_SEQ if stop is None else stop, max_events, max_bytes, view
            )
            if isinstance(found, Missing):
                # Unless it was acked just now by somebody else, and its file is gone
                # for that reason.
                lost_now = self._settle_lost(found, seq)
                if lost_now is not None:
                    return lost_now
            elif isinstance(found, Gap):
                with self._settling:
                    self._settled.settle(min(seq, found.start), found.end, 0)
            else:
                return found

    def _settle_lost(self, missing: Missing, seq: int) -> Lost | None:
        lost = missing.lost
        with self._settling:
            # From `seq` in any case: whatever nonsense the links say, reading goes on
            # behind the damage.
            self._settled.settle(min(seq, missing.gap_start), lost.first_seq, 0)
            # What lies before `seq` was delivered, may be acked yet, and is not lost:
            # at most so many of the events are there.
            start = max(lost.first_seq, seq)
            before = start - lost.first_seq - self._settled.empty_in(lost.first_seq, start)
            most = lost.events - before - self._settled.events_in(start, lost.end_seq)
            events = self._settled.settle(start, lost.end_seq, self._at_most(most))
            if events:
                self._damaged.add(missing.serial)
                self._lost_events += events
                self._lost_ranges += 1
                # So that it is not reported again after a restart.
                self._record()
        return dataclasses.replace(lost, first_seq=start, events=events) if events else None

    # ------------------------------------------------------------ acking

    def ack(self, first_seq: int, count: int) -> None:
        """These events need no delivery any more; in any order. ValueError where one of
        them is acked already or not stored.

        Never raises for the file system's sake: what can not be recorded may be
        delivered again after a restart.
        """
        if count < 0:
            raise ValueError(f"count: must be 0 or more, not {count}")
        with self._settling:
            self._check_open()
            end = first_seq + count
            if not 0 <= first_seq <= end <= self._writer.end_seq:
                raise ValueError(
                    f"{first_seq} to {end} is not within what was stored, which ends at {self._writer.end_seq}"
                )
            if count == 0:
                return
            if self._settled.overlaps(first_seq, end):
                raise ValueError(f"of {first_seq} to {end} some are acked already")
            self._settled.settle(first_seq, end, self._at_most(count))
            self._acked_events += count
            self._close_gaps()
            self._record()
            self._retire()
        self._restart_if_drained()
        self._close_retired()

    def sync_acks(self) -> bool:
        """Make durable what was acked, as far as the record has room for it; False
        where the file system refused.

        Nothing needs this: files are deleted only after it was done for them. Without
        it a power loss costs redelivery.
        """
        with self._settling:
            self._check_open()
            return not self._writer.view.segments or self._make_record_durable(self._settled.seq)

    def _close_gaps(self) -> None:
        """Where every event is settled, so are the numbers between them, also those
        that the reader has not come to.
        """
        end = self._writer.view.end  # of one moment: an append may go on
        if self._settled.events == end.rank:
            self._settled.jump(max(self._settled.end, end.end))

    def _record(self) -> None:
        """Write the ack record, not yet durably."""
        try:
            self._with_reserve(lambda: self._ledger.write(self._settled, self._writer.durable))
        except OSError:
            self._failed_acks += 1

    def _retire(self) -> None:
        """Delete the files of which everything is settled, after the record of that is
        durable.
        """
        segments = self._writer.view.segments
        done = self._settled_segments()
        if done == 0 or not self._make_record_durable(segments[done].base):
            return
        gone = 0
        for segment in segments[:done]:
            try:
                self._give_up(segment)
            except OSError:
                break  # next time
            gone += 1
        self._writer.drop_oldest(gone)
        if gone and not self._has_reserve:
            self._make_reserve()
        self._count_other_bytes()

    def _close_retired(self) -> None:
        """A file that was deleted takes room until nobody has it open."""
        segments = self._writer.view.segments
        if not segments or not self._reader.has_before(segments[0].serial):
            return
        # Whoever reads now opens nothing older, and the next ack comes by here again.
        if self._reading.acquire(blocking=False):
            try:
                self._reader.close_before(segments[0].serial)
            finally:
                self._reading.release()

    def _settled_segments(self) -> int:
        """How many of the oldest files, never the newest, hold nothing that is owed."""
        segments = self._writer.view.segments
        # The base of the next one is where a file's numbers end.
        return max(
            bisect_right(segments, self._settled.seq, key=lambda segment: segment.base) - 1, 0
        )

    def _make_record_durable(self, prefix: int) -> bool:
        """Whether it is durable that everything below `prefix` is settled."""
        try:
            self._with_reserve(lambda: self._ledger.write(self._settled, self._writer.durable))
            self._with_reserve(self._ledger.sync)
        except OSError:
            self._failed_acks += 1
        durable = self._ledger.durable
        return durable is not None and durable.prefix >= prefix

    def _free_room(self) -> None:
        """What could not be deleted when it was acked, because the full disk had no
        room for the record either.
        """
        with self._settling:
            self._retire()
        self._restart_if_drained()

    def _give_up(self, segment: Segment) -> None:
        """Delete a file, or keep it aside if it was damaged."""
        path = os.path.join(self.directory, segment.name)
        if segment.serial not in self._damaged:
            self._files.unlink(path)
            return
        try:
            self._files.rename(path, path + QUARANTINE_SUFFIX)
        except FileNotFoundError:
            return
        self._damaged.discard(segment.serial)
        self._quarantined.append((segment.name + QUARANTINE_SUFFIX, segment.size))
        while sum(size for _, size in self._quarantined) > self.config.effective_quarantine_bytes:
            self._remove(self._quarantined.pop(0)[0])

    def _restart_if_drained(self) -> None:
        """A lane that has caught up needs no old file: begin a new, empty one, which
        remembers where the lane is.
        """
        if self._writer.view.size < min(_RESTART_BYTES, self.config.effective_segment_bytes // 2):
            return
        # Whoever appends now will come by here again.
        if not self._writing.acquire(blocking=False):
            return
        try:
            with self._settling:
                writer = self._writer
                if self._events_on_disk():
                    return
                self._settled.jump(writer.end_seq)
                if not self._make_record_durable(writer.end_seq):
                    return
                try:
                    self._with_reserve(writer.restart)
                except OSError:
                    return
                self._retire()
        finally:
            self._writing.release()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Make everything durable, as far as possible, and let go of the files. Raises
        nothing; a second call does nothing.
        """
        with self._writing, self._reading, self._settling:
            if self._closed:
                return
            self._closed = True
            try:
                self._writer.sync()
            except OSError:
                pass
            if self._writer.view.segments:
                self._make_record_durable(self._settled.seq)
            self._writer.close()
            self._reader.close()
            self._ledger.close()

    def __enter__(self) -> SpillStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SpillStore({self.directory!r}, lane={self.lane}, first_seq={self.first_seq}, end_seq={self.end_seq})"

    # ------------------------------------------------------------ helpers

    def _first_seq(self) -> int:
        end = self._writer.view.end
        return (
            self._settled.seq
            if self._settled.events < end.rank
            else max(self._settled.end, end.end)
        )

    def _events_on_disk(self) -> int:
        return self._writer.view.end.rank - self._settled.events

    def _at_most(self, events: int) -> int:
        """So many, and no more than are there: links and records that contradict each
        other may tell of others.
        """
        return max(min(events, self._events_on_disk()), 0)

    def _check_open(self) -> None:
        if self._closed:
            raise BufferClosed(f"the store in {self.directory} was closed")

    def _make_reserve(self) -> None:
        """Room that is given up when the disk is full, so that acks can be recorded and
        files begun and deleted.
        """
        if self.config.effective_reserve_bytes == 0:
            return
        path = os.path.join(self.directory, _RESERVE_NAME)
        try:
            fd = self._files.open(path, CREATE)
        except FileExistsError:
            self._has_reserve = True
            return
        except OSError:
            return
        try:
            self._files.allocate(fd, self.config.effective_reserve_bytes)
            self._has_reserve = True
        except OSError:
            self._remove(_RESERVE_NAME)
        finally:
            self._files.close(fd)

    def _with_reserve(self, action: Callable[[], object]) -> None:
        """Do it; where the disk is full, once more without the reserve."""
        try:
            action()
        except OSError as error:
            if error.errno not in FULL or not self._has_reserve:
                raise
            self._has_reserve = False
            self._remove(_RESERVE_NAME)
            action()

    def _remove(self, name: str) -> None:
        try:
            self._files.unlink(os.path.join(self.directory, name))
        except OSError:
            pass  # in the way of nothing; the next opening tries again

    def _check(self) -> None:
        """Assert every invariant that can be told without reading the files: for tests,
        when no other call is under way.
        """
        writer = self._writer
        segments, size, end = writer.view
        self._settled._check()
        assert self._settled.events <= end.rank
        assert self._settled.seq <= max(writer.end_seq, end.end)
        assert writer.durable.rank <= end.rank
        assert writer.end_seq >= end.end
        for before, after in itertools.pairwise(segments):
            assert before.serial < after.serial
            assert before.base <= after.base
            assert before.link.rank <= after.link.rank <= end.rank
        assert writer.nbytes == sum(segment.size for segment in segments[:-1]) + size

    def _count_other_bytes(self) -> None:
        reserve = self.config.effective_reserve_bytes if self._has_reserve else 0
        self._writer.other_bytes = (
            self._ledger.nbytes + reserve + sum(size for _, size in self._quarantined)
        )


def _lengths_of(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The sizes of the events; ValueError or TypeError where these are not columns of
    events.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        raise TypeError(
            f"data: must be a contiguous array of uint8 with one dimension, not {data.dtype} with {data.ndim}"
        )
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) == 0:
        raise TypeError(
            f"offsets: must be a one-dimensional array of int64, not empty; not {offsets.dtype} of {offsets.shape}"
        )
    lengths = np.diff(offsets)
    if (
        offsets[0] < 0
        or offsets[-1] > len(data)
        or (len(lengths) and (lengths.min() < 0 or lengths.max() > MAX_EVENT_BYTES))
    ):
        raise ValueError(
            f"offsets: must ascend from 0 or more to at most {len(data)}, in steps of at most {MAX_EVENT_BYTES:,}"
        )
    return lengths
