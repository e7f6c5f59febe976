"""Carries lines from sources through a buffer to a sink.

For pipes and terminals there are two threads: the feeder puts chunks of lines into the
buffer, and a Delivery takes batches out and sends them. So a slow source never holds
back what is buffered, and a slow sink never stops the reading before the buffer is
full. Regular files neither wait nor go away, so there one thread feeds, and has the
Delivery go by steps: what it has just put in is still in its cache, and nothing is
handed from thread to thread (measured: a third less time).

The caller only watches (`wait`, `progress`), ends the run early if needed (`stop`,
`abandon`), and calls `settle` at the end. The threads are daemons: one that hangs in a
system call does not keep the process alive.

Every line that was read is at any moment in exactly one of these: acked, resident in
the buffer, or not yet accepted.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backpressure.base.clock import Clock, MonotonicClock
from backpressure.base.errors import BatchStateError, BufferClosed
from backpressure.base.priority import default_priority
from backpressure.buffer.admission import Admission
from backpressure.buffer.batch import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.delivery.delivery import Delivery
from backpressure.sinks import Sink, SinkGone
from backpressure.sources import LineChunk, LineReader
from backpressure.sources.priority_rules import PriorityRules
from ringbuf._messages.lines import count_lines

__all__ = ["Progress", "Transfer"]

# How often it is checked whether the run has to end: too short a delay to notice, and
# it costs nothing.
_CHECK_SECONDS = 0.05
# What was refused is offered again after this at the latest (seconds): the time that a
# refusal gives is an estimate.
_REFUSAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a transfer is; sizes in events unless they say bytes."""

    seconds: float
    events: int  # delivered
    nbytes: int  # delivered
    batches: int  # delivered
    smallest_batch: int
    largest_batch: int
    undelivered: int  # read, and not delivered (yet)


class Transfer:
    """One run from `sources` to `sink` through `buffer`.

    No other code uses the buffer. What an earlier run has left in its directory is
    delivered as well, before what is read.

    rules: give the priorities; None puts every line into one lane, so that the order
        stays as it is.
    max_line_bytes: the longest line that a lane takes, for LineReader.
    batch_size: most events in a batch; None leaves it to the buffer.
    retry_for: seconds within which a sink that fails must take a batch again, or the
        run ends; 0: at once.
    leave_open: is called with priority and sequence number of a last line that has no
        newline, before it is sent; not where `rules` are given, since another line may
        then be the last to come out.
    """

    def __init__(
        self,
        buffer: BufferManager,
        sources: Sequence[str],
        sink: Sink,
        *,
        max_line_bytes: int,
        rules: PriorityRules | None = None,
        batch_size: int | None = None,
        retry_for: float = 30.0,
        leave_open: Callable[[int, int], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._buffer = buffer
        self._sink = sink
        self._priority = default_priority(buffer.config.flow_control.priority_levels)
        self._rules = rules
        self._batch_size = batch_size
        self._retry_for = retry_for
        self._leave_open = leave_open
        self._clock = clock or MonotonicClock()
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        self.reader = LineReader(
            sources, max_line_bytes=max_line_bytes, stopping=self._stopping.is_set
        )
        self._fed = threading.Event()
        self._done = threading.Event()
        # Held while a last line without newline is put in and noted in `_end`, so that
        # it cannot be sent before it is noted.
        self._marking = threading.Lock()
        self._end: tuple[int, int] | None = None  # its priority and sequence number
        self._lockstep = all(map(_is_regular, sources))
        self._thread = threading.Thread(target=self._carry, name="forebay-carry", daemon=True)
        self._delivery: Delivery | None = None
        self._started = 0.0
        self._ended: float | None = None
        self._failing_since: float | None = None
        self._events = self._nbytes = self._batches = self._smallest = self._largest = 0
        #: Lines read and not accepted; final once `settle` has returned.
        self.unaccepted = 0
        #: Source and offset in it behind the last line that was read; None before the
        #: first.
        self.position: tuple[str, int] | None = None
        #: What ended the reading, or the delivery, before its time.
        self.source_error: Exception | None = None
        self.sink_error: BaseException | None = None

    def start(self) -> None:
        """Begin. A transfer runs once."""
        self._started = self._clock.now()
        self._delivery = Delivery.begin(
            self._buffer,
            _Counted(self, self._sink),
            max_events=self._batch_size,
            classify=self._lose_patience,
            by_steps=self._lockstep,
            # It is `settle` that closes the buffer, also at the end of the interpreter.
            ends_buffer=False,
        )
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait at most that long for the end; whether it has come."""
        return self._done.wait(seconds)

    def stop(self) -> None:
        """Read no more; what has been read is still delivered, for which the sink is
        asked whatever the circuit breaker says.
        """
        self._stopping.set()
        if self._delivery is not None:
            self._delivery.hurry()

    def abandon(self) -> None:
        """Read no more and begin no further batch."""
        self._stopping.set()
        self._abandoned.set()

    def settle(self, seconds: float) -> bool:
        """End a transfer that is over or abandoned: then the numbers are final.

        Waits at most `seconds` for the batch that is being sent; False: it still is,
        and counts as undelivered.
        """
        settled = self._done.wait(seconds)
        self._buffer.close(timeout=0.0)  # the feeder waits for room no longer
        if not self._lockstep:  # otherwise the feeder may be the thread that still sends
            self._fed.wait(seconds)
        return settled

    def progress(self) -> Progress:
        """The numbers of this moment."""
        stats = self._buffer.stats()
        return Progress(
            seconds=(self._clock.now() if self._ended is None else self._ended) - self._started,
            events=self._events,
            nbytes=self._nbytes,
            batches=self._batches,
            smallest_batch=self._smallest,
            largest_batch=self._largest,
            undelivered=stats.accepted - stats.acked + self.unaccepted,
        )

    def _carry(self) -> None:
        """Feed, deliver what is left, and end the delivery."""
        try:
            self._feed()
            self._deliver_rest()
        finally:
            self._ended = self._clock.now()
            self._done.set()

    # ---------------------------------------------------------------- the feeder

    def _feed(self) -> None:
        try:
            for chunk in self.reader:
                self.position = chunk.locate(len(chunk.data))
                self.unaccepted += count_lines(chunk.data)
                self._offer_chunk(chunk)
        except Exception as error:
            self.source_error = error
        finally:
            self._fed.set()

    def _offer_chunk(self, chunk: LineChunk) -> None:
        """Put the lines of `chunk` into the buffer, waiting for room.

        Those left when the run is abandoned stay unaccepted.
        """
        if self._rules is None:
            self._offer_lines(chunk)
            return
        parts = self._rules.split(chunk.data)
        for priority, events in parts:
            while events and not self._abandoned.is_set():
                admission = self._buffer.add_events(
                    events, priority=priority, timeout=self._room_timeout(), wait_for_sink=True
                )
                events = events[admission.accepted :]
                self.unaccepted -= admission.accepted
                self._deliver_in_step(admission)

    def _offer_lines(self, chunk: LineChunk) -> None:
        rest = chunk.data
        while rest and not self._abandoned.is_set():
            if chunk.unterminated:
                with self._marking:
                    admission = self._buffer.add_lines(rest, timeout=0.0, final=True)
                    if self._leave_open is not None and admission.first_seq is not None:
                        self._end = (self._priority, admission.first_seq)
                        self._leave_open(*self._end)
                if not admission.accepted and not self._lockstep:
                    # Outside of the lock, or nothing would ever be sent.
                    self._abandoned.wait(_CHECK_SECONDS)
            else:
                admission = self._buffer.add_lines(
                    rest, timeout=self._room_timeout(), final=True, wait_for_sink=True
                )
            rest = rest[admission.consumed :]
            self.unaccepted -= admission.accepted
            self._deliver_in_step(admission)

    def _room_timeout(self) -> float | None:
        """How long to wait for room. In lockstep no other thread makes any."""
        return 0.0 if self._lockstep else None

    def _deliver_in_step(self, admission: Admission) -> None:
        """In lockstep, deliver all that is ready.

        Where something was refused, go on until it can be offered again.
        """
        if not self._lockstep:
            return
        # A full lane has room after the first batch. Other refusals say when to retry,
        # and a retry before that would count as demand.
        full = admission.reason == "full"
        wait = _CHECK_SECONDS if full else min(admission.retry_after, _REFUSAL_SECONDS)
        deadline = time.monotonic() + wait
        while not self._abandoned.is_set():
            left = max(0.0, deadline - time.monotonic())
            if self._step(min(left, _CHECK_SECONDS)):
                deadline = 0.0 if full else deadline
            elif not left:
                return

    # ---------------------------------------------------------------- the delivery

    def _step(self, seconds: float) -> bool:
        """Deliver a batch within that time, in lockstep; whether there was one."""
        assert self._delivery is not None
        try:
            sent = self._delivery.step(seconds)
        except BufferClosed:  # the run was settled before it was through
            self.abandon()
            return False
        self._look_for_error()
        return sent

    def _look_for_error(self) -> None:
        """End the run where the delivery has ended."""
        assert self._delivery is not None
        if (error := self._delivery.error) is not None and self.sink_error is None:
            self.sink_error = error
            self.abandon()

    def _deliver_rest(self) -> None:
        """Until all is delivered, or nothing more is to be."""
        assert self._delivery is not None
        while not self._abandoned.is_set() and self._buffer.resident:
            if self._lockstep:
                self._step(_CHECK_SECONDS)
            elif self._delivery.wait(_CHECK_SECONDS):
                self._look_for_error()
                break
        # What is being sent by then is waited for.
        self._delivery.stop(None, drain=False)
        self._look_for_error()

    def _count(self, count: int, nbytes: int) -> None:
        """A batch has been delivered."""
        self._failing_since = None
        self._events += count
        self._nbytes += nbytes
        self._batches += 1
        self._smallest = min(self._smallest or count, count)
        self._largest = max(self._largest, count)

    def _bytes_out(self, batch: Batch) -> int:
        """How many bytes the batch has in the output."""
        count, priority = len(batch), int(batch.priority)
        with self._marking:
            newlines = count - (self._end == (priority, batch.first_seq + count - 1))
        return batch.nbytes + newlines

    def _lose_patience(self, error: BaseException) -> SinkGone | None:
        """Whether that failure of the sink is the last: it has failed for too long, or
        it is a mistake, which does not pass.
        """
        if isinstance(error, OSError):
            now = self._clock.now()
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since < self._retry_for:
                return None
        return SinkGone(str(error))


class _Counted:
    """The sink as the delivery has it: settles each batch and counts it, so that the
    numbers are right at every moment.
    """

    def __init__(self, transfer: Transfer, sink: Sink) -> None:
        self._transfer = transfer
        self._sink = sink
        self.name: str = getattr(sink, "name", "the sink")
        # Lines stay in their order, and what is no failure of the sink ends the run.
        self.rejects_events = False

    def send(self, batch: Batch) -> None:
        count, nbytes = len(batch), self._transfer._bytes_out(batch)
        self._sink.send(batch)
        try:
            batch.ack()
        except (BatchStateError, BufferClosed):
            return  # too late: it counts as undelivered
        self._transfer._count(count, nbytes)

    def close(self) -> None:
        """It is the caller's to close."""


def _is_regular(source: str) -> bool:
    """Whether `source` is a regular file.

    The error of one that cannot be examined comes when it is read.
    """
    try:
        return stat.S_ISREG((os.fstat(0) if source == "-" else os.stat(source)).st_mode)
    except OSError:
        return False
