"""SpillStore: the events of one lane that are on disk.

    first_seq ......... read ......... durable_seq ......... end_seq

What is appended can be read from any number on and acked in any order. A file is
deleted when everything in it is acked and the record of that is durable. The format,
its invariants and its recovery are at the head of blocks.py, segments.py and ledger.py.

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
is writing, reading, settling. A finaliser or signal's handler that interrupts a call of
its own thread may ack, whose entry waits until that call is over, and ask what there
is; it can neither append, sync nor read.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable
from types import TracebackType
from uuid import UUID

import numpy as np
import numpy.typing as npt

from backpressure.base.errors import BufferClosed, DiskFull, NotNow
from backpressure.base.reentry import Reentry, acquire_within, deferrable
from backpressure.spill.budget import DiskBudget
from backpressure.spill.columns import lengths_of
from backpressure.spill.config import SpillConfig, within
from backpressure.spill.files import Files, FileSystem, LocalFileSystem, refusal
from backpressure.spill.reader import Gap, Missing, Reader
from backpressure.spill.reclaimer import Reclaimer
from backpressure.spill.recovery import (
    end_seq_of,
    has_record_beyond_end,
    missing_tail_of,
    recover,
    settled_of,
)
from backpressure.spill.runs import Lost, Run
from backpressure.spill.stats import SpillStats
from backpressure.spill.writer import Writer, level_for

__all__ = ["SpillStore"]

# A lane that has caught up replaces its newest file from this size on: below, a new
# file costs more than it frees.
_RESTART_BYTES = 1 << 20
_LAST_SEQ = (1 << 64) - 1


class SpillStore:
    """The disk tier of one lane.

    `directory` exists and belongs to this store alone (see directory.py).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        lane: int,
        buffer_id: UUID,
        config: SpillConfig | None = None,
        fs: FileSystem | None = None,
        budget: DiskBudget | None = None,
    ) -> None:
        """Open what is there, or begin. budget: shared with other stores.

        Raises FormatError for files of a later version or of another buffer, which stay
        as they are, and DiskFailed or DiskFull where the file system refuses; the same
        call may be tried again.
        """
        self.directory = os.fspath(directory)
        self.lane = lane
        config = config or SpillConfig()
        budgets = [] if budget is None else [budget]
        if (most := config.max_disk_bytes) is not None:
            config = within(config, most)
            budgets.append(DiskBudget(most))
        self.config = config
        self._files = Files(fs or LocalFileSystem())
        self._writing = threading.RLock()
        self._reading = threading.RLock()
        self._reentry = Reentry(self._start_over, self._writing, self._reading)
        self._settling = self._reentry.lock
        self._closed = False
        try:
            found = recover(self._files, self.directory, lane, buffer_id)
        except OSError as error:
            raise refusal(f"cannot open {self.directory}", error) from error
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
            budgets,
        )
        self._reader = Reader(self._files, self.directory)
        self._torn_bytes = found.torn_bytes
        self._damaged_headers = found.damaged_headers
        self._acked_events = 0
        self._lost_events = 0
        self._lost_ranges = 0
        self._refused_full = 0
        # What was durable once and is missing at the end of the newest file: to be
        # reported before anything else.
        self._missing_tail = missing_tail_of(found)
        for name in found.leftovers:
            # One that cannot be deleted is in the way of nothing; the next opening
            # tries again.
            self._files.try_unlink(os.path.join(self.directory, name))
        self._reclaimer = Reclaimer(
            self._files,
            self.directory,
            lane,
            buffer_id,
            self.config,
            found,
            self._settled,
            self._writer,
        )
        for one in budgets:
            one.join(lambda: self.bytes_on_disk)
        if has_record_beyond_end(found):
            # Otherwise it would be read, after further appends, as if the events that
            # are gone were among them.
            try:
                self._reclaimer.sync_record()
            except OSError as error:
                self._reclaimer.close()
                raise refusal(f"cannot write the ack record in {self.directory}", error) from error

    # ------------------------------------------------------------ what there is

    @property
    def end_seq(self) -> int:
        """The number after the last one that was stored or settled.

        It is the lowest that can be appended.
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
                quarantined_segments=len(self._reclaimer.quarantine),
                quarantined_bytes=self._reclaimer.quarantine.nbytes,
                failed_syncs=writer.failed_syncs,
                failed_acks=self._reclaimer.failed_acks,
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
        """Store events with consecutive numbers. Durable after sync().

        `first_seq` is `end_seq` or more; numbers left out are a gap. Event i is
        data[offsets[i]:offsets[i + 1]]. `pressure` from 0 to 1 chooses how much time
        compression may take; `time_ns` since 1970 is kept with the events.

        Events are stored block by block: after DiskFull or DiskFailed, `end_seq` says
        how far it came, and the rest is to be given again. Raises ValueError and
        TypeError for wrong arguments.
        """
        lengths = lengths_of(data, offsets)
        if not 0 <= time_ns <= _LAST_SEQ:
            raise ValueError(f"time_ns: must be from 0 to {_LAST_SEQ:,}, not {time_ns}")
        if not 0.0 <= pressure <= 1.0:
            raise ValueError(f"pressure: must be from 0 to 1, not {pressure!r}")
        self._check_not_within()
        with self._writing:
            self._check_open()
            writer = self._writer
            if not writer.end_seq <= first_seq <= _LAST_SEQ - len(lengths):
                raise ValueError(
                    f"first_seq: must be from end_seq ({writer.end_seq}) to "
                    f"{_LAST_SEQ - len(lengths)}, not {first_seq}"
                )
            if len(lengths) == 0:
                return
            with self._settling:
                # Asked before the append: its events may be read and acked before it
                # returns.
                nothing_waits = self._settled.events == writer.view.end.rank
            level = level_for(pressure, self.config)
            try:
                self._attempt(
                    "append to",
                    lambda: writer.append(first_seq, data, offsets, lengths, level, time_ns),
                )
            finally:
                # If nothing waited, the numbers left out are settled here. Otherwise
                # the reader settles them when it comes to the gap.
                if nothing_waits and writer.end_seq > first_seq:
                    with self._settling:
                        self._settled.settle(self._settled.seq, first_seq, 0)
        self._catch_up()

    def sync(self) -> None:
        """Make durable what was appended.

        After DiskFull or DiskFailed durable_seq is as it was.
        """
        self._check_not_within()
        with self._writing:
            self._check_open()
            self._attempt("sync", self._writer.sync)
        self._catch_up()

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Call `action`; a refusal of the file system becomes one of the store."""
        try:
            action()
        except (OSError, DiskFull) as error:
            refused = (
                error
                if isinstance(error, DiskFull)
                else refusal(f"cannot {what} {self.directory}", error)
            )
            if isinstance(refused, DiskFull):
                self._refused_full += 1
                self._free_room()
            if refused is error:
                raise
            raise refused from error

    # ------------------------------------------------------------ reading

    def read(self, from_seq: int, max_events: int, max_bytes: int) -> Run | Lost | None:
        """The first events from `from_seq` on that are not settled, or None.

        At most max_events, and at most max_bytes of payload unless one event alone is
        larger. A Run ends before a number that is settled, a gap or damage. Lost
        reports damage, once: its numbers are settled by that. Raises DiskFailed where
        the file system refuses for another reason than damage.
        """
        if max_events < 1 or max_bytes < 0:
            raise ValueError(
                "max_events must be 1 or more and max_bytes 0 or more, "
                f"not {max_events} and {max_bytes}"
            )
        self._check_not_within()
        with self._reading:
            self._check_open()
            try:
                found = self._read(from_seq, max_events, max_bytes)
            except OSError as error:
                raise refusal(f"cannot read {self.directory}", error) from error
        self._catch_up()
        return found

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
                # None: other threads acked all of it meanwhile, and its file may be
                # gone for that reason.
                lost_now = self._settle_lost(found, seq)
                if lost_now is not None:
                    return lost_now
            elif isinstance(found, Gap):
                with self._settling:
                    self._settled.settle(min(seq, found.start), found.end, 0)
            else:
                return found

    def _settle_lost(self, missing: Missing, seq: int) -> Lost | None:
        """Settle what damage took, from `seq` on; what is to be reported of it."""
        lost = missing.lost
        with self._settling:
            # From `seq` in any case: whatever the links say, reading goes on behind the
            # damage.
            self._settled.settle(min(seq, missing.gap_start), lost.first_seq, 0)
            # What lies before `seq` was delivered, may be acked yet, and is not lost.
            # The events left for the loss are `most`.
            start = max(lost.first_seq, seq)
            before = start - lost.first_seq - self._settled.empty_in(lost.first_seq, start)
            most = lost.events - before - self._settled.events_in(start, lost.end_seq)
            events = self._settled.settle(start, lost.end_seq, self._limit_to_stored(most))
            if events:
                self._reclaimer.mark_damaged(missing.serial)
                self._lost_events += events
                self._lost_ranges += 1
                # Otherwise it would be reported again after a restart.
                self._reclaimer.write_record()
        return dataclasses.replace(lost, first_seq=start, events=events) if events else None

    # ------------------------------------------------------------ acking

    @deferrable
    def ack(self, first_seq: int, count: int) -> None:
        """Settle these events: they need no delivery any more. In any order.

        Raises ValueError where one of them is acked already or not stored. A file
        system that refuses raises nothing: what could not be recorded may be delivered
        again after a restart.
        """
        if count < 0:
            raise ValueError(f"count: must be 0 or more, not {count}")
        self._ack(first_seq, count, again=False)

    @deferrable
    def forget(self, seq: int) -> None:
        """`ack` of one event; of one that is acked already it does nothing."""
        self._ack(seq, 1, again=True)

    def _ack(self, first_seq: int, count: int, *, again: bool) -> None:
        with self._settling:
            self._check_open()
            end = first_seq + count
            if not 0 <= first_seq <= end <= self._writer.end_seq:
                raise ValueError(
                    f"{first_seq} to {end} is not within what was stored, which ends at "
                    f"{self._writer.end_seq}"
                )
            if count == 0:
                return
            if self._settled.overlaps(first_seq, end):
                if again:
                    return
                raise ValueError(f"of {first_seq} to {end} some are acked already")
            events = self._limit_to_stored(count)
            self._settled.add(first_seq, end, events)
            self._acked_events += count
            self._close_gaps()
            self._reclaimer.write_record()
            self._reclaimer.delete_settled()
        self._restart_if_drained()
        self._close_deleted()

    def is_settled(self, first_seq: int, count: int) -> bool:
        """Whether all of these events need no delivery any more."""
        with self._settling:
            return self._settled.covers(first_seq, first_seq + count)

    def sync_acks(self) -> bool:
        """Make durable what was acked; False where the file system refused.

        Only as far as the record has room for it. Without this call a power loss costs
        redelivery and nothing else: the store does it itself before it deletes a file.
        """
        if self._reentry.within():
            self._reentry.deferred.append(self.sync_acks)
            return False
        with self._settling:
            self._check_open()
            return not self._writer.view.segments or self._reclaimer.make_durable(self._settled.seq)

    def _close_gaps(self) -> None:
        """Where every event is settled, settle the numbers between them too.

        The reader may never come to them.
        """
        end = self._writer.view.end  # of one moment: an append may go on
        if self._settled.events == end.rank:
            self._settled.jump(max(self._settled.end, end.end))

    def _close_deleted(self) -> None:
        """Close the files that were deleted: until then they take room."""
        segments = self._writer.view.segments
        if not segments or not self._reader.has_before(segments[0].serial):
            return
        # A thread that reads now opens nothing older, and the next ack comes here
        # again.
        acquired: list[bool] = []
        try:
            if acquire_within(self._reading, acquired):
                self._reader.close_before(segments[0].serial)
        finally:
            if acquired:
                self._reading.release()

    def _free_room(self) -> None:
        """Delete what could not be deleted when it was acked.

        A full disk had no room for the record either.
        """
        with self._settling:
            self._reclaimer.delete_settled()
        self._restart_if_drained()

    def _restart_if_drained(self) -> None:
        """Where nothing is owed, begin an empty file and delete the others.

        Its header says where the lane is.
        """
        if self._writer.view.size < min(_RESTART_BYTES, self.config.segment_bytes // 2):
            return
        # A thread that appends now is followed by acks, which come here again.
        acquired: list[bool] = []
        try:
            if not acquire_within(self._writing, acquired):
                return
            with self._settling:
                if self._events_on_disk():
                    return
                self._settled.jump(self._writer.end_seq)
                self._reclaimer.replace_all()
        finally:
            if acquired:
                self._writing.release()

    # ------------------------------------------------------------ the end

    @deferrable
    def close(self) -> None:
        """Make everything durable, as far as possible, and close the files.

        Raises nothing; a second call does nothing.
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
                self._reclaimer.make_durable(self._settled.seq)
            self._writer.close()
            self._reader.close()
            self._reclaimer.close()

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
        return (
            f"SpillStore({self.directory!r}, lane={self.lane}, "
            f"first_seq={self.first_seq}, end_seq={self.end_seq})"
        )

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

    def _limit_to_stored(self, events: int) -> int:
        """That many, but no more than are there.

        Links and records may contradict each other.
        """
        return max(min(events, self._events_on_disk()), 0)

    def within_or(self, other: Reentry) -> Callable[[], bool]:
        """A function: whether a call has interrupted another one of its own thread, on
        this object or on the other's.
        """
        return other.within_or(self._reentry)

    def _check_not_within(self) -> None:
        if self._reentry.within():
            raise NotNow(
                f"this thread is within another call that uses {self.directory}: try again after it"
            )

    def _catch_up(self) -> None:
        """Do what was put off."""
        if self._reentry.deferred:
            self._reentry.apply()

    def _start_over(self) -> None:
        """A forked child uses none of its parent's files."""

    def _check_open(self) -> None:
        if self._closed:
            raise BufferClosed(f"the store in {self.directory} was closed")

    def _check(self) -> None:
        """Assert every invariant that needs no reading of files.

        For tests, while no other call is under way.
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
