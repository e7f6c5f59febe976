"""Settlement: what becomes of a batch that a consumer has done with.

Batch.ack, .nack, .settle ──> outcome ──> lane, dead letters, ControlLoop, SinkAccess
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from backpressure.base.errors import BufferClosed, NotNow, PartialFailure, SinkUnavailable
from backpressure.base.validation import as_int
from backpressure.base.wakeup import Wakeup
from backpressure.base.wording import said
from backpressure.buffer.batch import Batch
from backpressure.buffer.intake import FORKED
from backpressure.buffer.lane_watch import LaneWatch
from backpressure.buffer.reporter import EventReporter
from backpressure.buffer.sink_access import SinkAccess
from backpressure.delivery.outcomes import Meaning, Outcome, outcome_of
from backpressure.lanes.attempts import Verdict
from backpressure.lanes.handout import Handout
from backpressure.lanes.lane import Fate, Lane
from backpressure.policies.circuit_breaker import Canary
from backpressure.policies.control_loop import ControlLoop
from backpressure.spill.dead_letter import DeadLetter

__all__ = ["DeadLetters", "Settlement"]


class DeadLetters(Protocol):
    """Where events go that are given up. Raises NotNow where it has no room."""

    def add(self, letters: Sequence[DeadLetter], /) -> int: ...


class Settlement:
    """Of one buffer; a `BatchOwner`. Safe for any thread.

    ready: notified when a batch may be delivered again; room: when there is room.
    max_attempts: of a single event; None: no end.
    """

    def __init__(
        self,
        *,
        control: ControlLoop,
        watch: LaneWatch,
        ready: Wakeup,
        room: Wakeup,
        sink: SinkAccess,
        dead_letters: DeadLetters,
        max_attempts: int | None,
        now: Callable[[], float],
        reporter: EventReporter,
    ) -> None:
        #: This process was forked from the one that made the buffer.
        self.forked = False
        self._control = control
        self._watch = watch
        self._ready = ready
        self._room = room
        self._sink = sink
        self._dead_letters = dead_letters
        self._max_attempts = max_attempts
        self._now = now
        self._reporter = reporter

    def ack(self, batch: Batch) -> None:
        """What `Batch.ack` calls."""
        if self.forked:
            self._check_own()
        control, handout = self._control, batch._handout
        now = self._now()
        lane, events = handout.lane, len(handout.messages)
        if lane.is_within():  # a finaliser, or a signal's handler
            lane.settle_later(handout, partial(self.ack, batch))
            return
        latency = max(0.0, now - batch.taken_at)
        lane.ack(handout, latency)
        self._sink.took(handout.attempts, handout.messages.nbytes)
        self._room.notify()
        control.settled(events, latency, True, batch.filled, batch.permit, trial=batch.trial)
        if lane.deferred:
            lane.catch_up()
        if now >= control.next_tick:
            self._watch.tick(now)

    def ignores(self, error: BaseException) -> bool:
        """Whether it says nothing about the sink."""
        return self._control.ignores(error)

    def nack(self, batch: Batch, error: BaseException | str | None) -> None:
        """What `Batch.nack` calls."""
        self.conclude(batch, outcome_of(error, self._control.ignores))

    def settle(
        self,
        batch: Batch,
        retry: Iterable[int],
        reject: Iterable[int] | Mapping[int, object],
        error: BaseException | str | None,
    ) -> None:
        """What `Batch.settle` calls."""
        outcome = PartialFailure(retry=retry, reject=reject)
        fates = _fates(outcome, len(batch))
        self._settle_partly(batch, outcome, fates, error if error is not None else outcome)

    def conclude(self, batch: Batch, outcome: Outcome) -> None:
        """Settle the batch as that outcome of an attempt to deliver it says."""
        self._check_own()
        handout = batch._handout
        lane = handout.lane
        if outcome.meaning is Meaning.TAKEN:
            self.ack(batch)
            return
        if lane.is_within():
            lane.settle_later(handout, partial(self.conclude, batch, outcome))
            return
        now = self._now()
        match outcome.meaning:
            case Meaning.IGNORED | Meaning.GONE:
                self._put_back(batch, outcome, now)
            case Meaning.PARTIAL:
                assert isinstance(outcome.error, PartialFailure)
                try:
                    fates = _fates(outcome.error, len(batch))
                except ValueError as mistake:
                    # The sink's own error, which says nothing that can be followed.
                    mistake.__cause__ = outcome.error
                    self._fail(batch, Outcome(Meaning.FAULT, mistake), now)
                else:
                    self._settle_partly(batch, outcome.error, fates, outcome.error)
                    return
            case Meaning.TOO_LARGE | Meaning.REJECTED:
                self._refuse(batch, outcome, now)
            case _:
                self._fail(batch, outcome, now)
        self._settled(lane, now)

    def _settled(self, lane: Lane, now: float) -> None:
        self._ready.notify()
        self._room.notify()  # a producer may be waiting for the sink
        lane.catch_up()
        if now >= self._control.next_tick:
            self._watch.tick(now)

    def _check_own(self) -> None:
        if self.forked:
            raise BufferClosed(FORKED)

    def _put_back(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """What ended this attempt says nothing about the batch, nor about the sink."""
        error = outcome.error
        batch._handout.error = said(error)
        pause = 0.0
        if outcome.meaning is Meaning.IGNORED and isinstance(error, BaseException):
            pause = self._control.pause_after(error)
        batch._handout.lane.put_back(batch._handout, now + self._sink.bounded(pause))
        batch.permit.ignore()

    def _fail(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """The error does not name the batch: it may be the sink's fault, or not."""
        handout, control = batch._handout, self._control
        lane, attempts, events = handout.lane, handout.attempts, len(handout.messages)
        latency = max(0.0, now - batch.taken_at)
        with lane.claim(handout):
            handout.error = None if outcome.error is None else said(outcome.error)
            cleared = attempts.cleared
            verdict = self._judge(batch, events, latency)
            if outcome.retry_after is not None:
                self._sink.away_until = now + self._sink.bounded(outcome.retry_after)
            if verdict is Verdict.HALVE:
                lane.halve(handout, now)
            elif verdict is Verdict.GIVE_UP:
                self._bury(batch, outcome.error, latency, now)
            else:
                pause = max(control.backoff(attempts.failures), outcome.retry_after or 0.0)
                lane.nack(handout, now + self._sink.bounded(pause))
        if cleared or attempts.cleared:
            batch.permit.ignore()
            return
        cause = outcome.error if isinstance(outcome.error, BaseException) else None
        control.settled(events, latency, False, batch.filled, batch.permit, cause)

    def _judge(self, batch: Batch, events: int, latency: float) -> Verdict:
        """What a failure that does not name them does to that many of its events."""
        handout = batch._handout
        if self._sink.keeps_order:
            handout.attempts.failures += 1
            return Verdict.AGAIN
        return handout.attempts.failed(
            self._sink.record,
            events=events,
            seconds=latency,
            comparison=handout.comparison,
            canary=isinstance(batch.permit, Canary),
            max_attempts=self._max_attempts,
        )

    def _refuse(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """The sink has answered: this batch is the trouble."""
        handout = batch._handout
        lane, single = handout.lane, len(handout.messages) == 1
        if single and outcome.meaning is Meaning.REJECTED and self._sink.record.rejects_all():
            error = SinkUnavailable(f"the sink rejects every event: {said(outcome.error)}")
            if isinstance(outcome.error, BaseException):
                error.__cause__ = outcome.error
            self._fail(batch, Outcome(Meaning.UNAVAILABLE, error), now)
            return
        latency = max(0.0, now - batch.taken_at)
        with lane.claim(handout):
            handout.error = said(outcome.error)
            if outcome.meaning is Meaning.TOO_LARGE and not single:
                self._sink.size.too_large(handout.messages.nbytes)
            if single:
                self._bury(batch, outcome.error, latency, now)
            else:
                lane.halve(handout, now)
        batch.permit.success(latency)

    def _bury(
        self, batch: Batch, error: BaseException | str | None, latency: float, now: float
    ) -> None:
        """Make a dead letter of a claimed batch's single event."""
        self._settle_claimed(batch, [Fate.DEAD], {0: error}, latency, now, halve=False)

    def _settle_partly(
        self,
        batch: Batch,
        outcome: PartialFailure,
        fates: list[Fate],
        error: BaseException | str | None,
    ) -> None:
        self._check_own()
        handout, control = batch._handout, self._control
        lane = handout.lane
        if lane.is_within():
            lane.settle_later(handout, partial(self._settle_partly, batch, outcome, fates, error))
            return
        now = self._now()
        latency = max(0.0, now - batch.taken_at)
        acked, again = fates.count(Fate.ACKED), fates.count(Fate.AGAIN)
        if again == len(fates):
            # Nothing was taken: that is what any other failure is.
            self._fail(batch, Outcome(Meaning.FAULT, error), now)
            self._settled(lane, now)
            return
        errors = dict(outcome.reject) if isinstance(outcome.reject, Mapping) else {}
        with lane.claim(handout):
            handout.error = said(error) if error is not None else None
            if acked:
                self._sink.took(handout.attempts, 0)
            halve = False
            if again:
                verdict = self._judge(batch, again, latency)
                halve = verdict is Verdict.HALVE
                if verdict is Verdict.GIVE_UP:
                    fates[fates.index(Fate.AGAIN)] = Fate.DEAD
            self._settle_claimed(batch, fates, errors, latency, now, halve=halve)
        self._room.notify()
        if acked:
            control.settled(acked, latency, True, None, batch.permit)
        else:
            batch.permit.success(latency)
        self._settled(lane, now)

    def _settle_claimed(
        self,
        batch: Batch,
        fates: list[Fate],
        errors: Mapping[int, object],
        latency: float,
        now: float,
        *,
        halve: bool,
    ) -> None:
        """Write the dead letters, then settle the lane. Where there is no room for
        them, these events are tried once more.
        """
        handout = batch._handout
        lane, pause = handout.lane, 0.0
        dead = [index for index, fate in enumerate(fates) if fate is Fate.DEAD]
        if dead:
            try:
                self._dead_letters.add(_letters(handout, dead, errors))
            except NotNow:
                fates = [Fate.AGAIN if fate is Fate.DEAD else fate for fate in fates]
                dead = []
        if Fate.AGAIN in fates:
            pause = self._control.backoff(max(1, handout.attempts.failures))
        runs = _runs(fates)
        lane.settle(handout, runs, latency, now + self._sink.bounded(pause), halve)
        if dead:
            self._room.notify()
            self._reporter.dead_lettered(handout, dead)


def _fates(outcome: PartialFailure, events: int) -> list[Fate]:
    """What becomes of each event. ValueError where the outcome makes no sense."""
    fates = [Fate.ACKED] * events
    for name, indices, fate in (
        ("retry", outcome.retry, Fate.AGAIN),
        ("reject", outcome.reject, Fate.DEAD),
    ):
        for given in indices:
            index = as_int(given)
            if index is None or not 0 <= index < events:
                raise ValueError(
                    f"{name} must hold indices of the batch, ints from 0 to {events - 1}, "
                    f"not {given!r}"
                )
            if fates[index] is not Fate.ACKED:
                raise ValueError(f"index {index} is named twice, in {name} at last")
            fates[index] = fate
    return fates


def _runs(fates: Sequence[Fate]) -> list[tuple[int, Fate]]:
    """Stretches of the same fate, each with the index after its last event."""
    runs: list[tuple[int, Fate]] = []
    for index, fate in enumerate(fates):
        if runs and runs[-1][1] is fate:
            runs[-1] = (index + 1, fate)
        else:
            runs.append((index + 1, fate))
    return runs


def _letters(
    handout: Handout, indices: Sequence[int], errors: Mapping[int, object]
) -> list[DeadLetter]:
    seqs, time_ns = handout.seqs(), time.time_ns()
    return [
        DeadLetter(
            event=handout.messages[index],
            error=said(errors.get(index, handout.error or "")),
            attempts=handout.attempt,
            priority=handout.lane.priority,
            seq=int(seqs[index]),
            time_ns=time_ns,
        )
        for index in indices
    ]
