"""ControlLoop: the four policies, wired to each other. Numbers in, numbers out.

    admit ────────────> FlowControlManager <── failures, queue, circuit
    permit ───────────> CircuitBreaker     <── outcomes
    batch_size <─────── AdaptiveBatchManager <── sizes, latencies, pressure, refusals
    tick ─────────────> BackpressureMonitor <── depth, delay, latency, failures

Each actuator has one owner: the rate is flow control's, the batch size the batch
manager's, whether the sink is called the breaker's. The monitor only measures, and its
pressure is an input to the batch size.

It knows no lane and no thread, and does no I/O: a buffer feeds it from its lanes, and
bench/overload from its model, so that the simulation proves the code that ships.

Safe for any thread: each policy has a lock of its own, and none is held while another
policy is called.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from backpressure.base.errors import CircuitOpenError
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import BackpressureMonitor, Pressure
from backpressure.policies.circuit_breaker import CircuitBreaker, Permit, State
from backpressure.policies.flow_control_manager import FlowControlManager, Grant
from backpressure.policies.linger import FlushReason

__all__ = ["SHORT", "Backoff", "ControlLoop", "QueueReading"]

#: The share of a lane from which on its room is short: the other half outlasts everyday
#: trouble of the sink.
SHORT: Final = 0.5

# The monitor is fed with depth and delay this often (seconds): often enough to see a
# spike begin, rarely enough to cost nothing.
_TICK: Final = 0.02
# A lane filled to this share counts as the configured depth, however few events that
# are.
_HIGH_WATERMARK: Final = 0.8
# Two or three batches in reach keep several consumers busy until the next tick.
_ENOUGH_BATCHES: Final = 2.5
# Attempts that fit into the breaker's window at the longest pause, as multiples of
# those that it needs: half of the window is left for the calls themselves.
_RESULTS: Final = 2


class QueueReading(NamedTuple):
    """What the lanes show at one moment.

    Sequences are by priority, the most urgent first, a number for each of
    `priority_levels`.
    """

    #: Events that wait for a consumer.
    waiting: Sequence[int]
    #: Events that consumers have taken so far.
    taken: Sequence[int]
    #: The occupied share (0 to 1) of the fullest lane in which events wait.
    fill: float
    #: Seconds that the oldest waiting event has waited.
    delay: float
    #: Whether what would wait too long is kept elsewhere, or makes room by itself: then
    #: nothing is refused for its delay.
    spills: bool = False
    #: Events that wait in lanes beyond these priorities, which take nothing more and
    #: are served last.
    surplus: int = 0
    #: Whether a lane is fuller than SHORT and nothing else takes what comes, so that it
    #: may find no room before the sink is well again.
    room_short: bool = False


class Backoff(NamedTuple):
    """How long a nacked batch pauses: from `first` to `longest` seconds, doubling."""

    first: float = 0.01
    longest: float = 5.0
    #: Whether, while nothing succeeds, the pause stays short enough for the breaker to
    #: see the failures that it needs to open.
    feeds_breaker: bool = True


_DEFAULT_BACKOFF: Final = Backoff()


class ControlLoop:
    """The policies as one. rng: the source of jitter; backoff: of nacked batches."""

    def __init__(
        self,
        breaker: CircuitBreaker,
        monitor: BackpressureMonitor,
        batching: AdaptiveBatchManager,
        flow: FlowControlManager,
        *,
        rng: random.Random,
        backoff: Backoff = _DEFAULT_BACKOFF,
    ) -> None:
        self.breaker: Final = breaker
        self.monitor: Final = monitor
        self.batching: Final = batching
        self.flow: Final = flow
        #: When the next tick is due, on the policies' clock.
        self.next_tick = 0.0
        self._rng = rng
        self._backoff = backoff
        # These pass nothing on: the policy's own method, without a call in between.
        #: How many of n events of a priority may enter now.
        self.admit: Final[Callable[[int, int], Grant]] = flow.admit
        #: Whether all of n events of a priority, a guess of how many there are, may
        #: enter now; False is no refusal, and leaves no trace.
        self.admit_whole: Final[Callable[[int, int], bool]] = flow.admit_whole
        #: Take back n granted events of a priority that did not enter after all.
        self.give_back: Final[Callable[[int, int], None]] = flow.give_back
        #: Leave for one call of the sink, or None where the circuit refuses it.
        self.permit: Final[Callable[[], Permit | None]] = breaker.try_acquire
        #: The same for one call whatever the circuit's clock says, for whoever has no
        #: time to wait; None where it was forced open, or one such call is out.
        self.ask: Final[Callable[[], Permit | None]] = breaker.try_acquire_now
        #: Seconds until `permit` may give one again; 0.0: now.
        self.retry_after: Final[Callable[[], float]] = breaker.retry_after
        #: Count a batch that was handed out, by the reason for which it was closed.
        self.handed_out: Final[Callable[[FlushReason], None]] = batching.flushed

    @property
    def batch_size(self) -> int:
        """How many events a batch should have now."""
        return self.batching.batch_size

    def ignores(self, error: object) -> bool:
        """Whether `error` says nothing about the sink, as a cancellation does: then the
        attempt that it ended does not count, and no policy hears of it.
        """
        return isinstance(error, BaseException) and self.breaker.config.ignores(error)

    def pause_after(self, ignored: BaseException) -> float:
        """Seconds before the next attempt of a batch whose last one was ended by an
        error that the policies ignore: none after a cancellation, which is not
        repeated by itself; where the call was refused by a circuit breaker of the
        sink's own, the time that it asks for; else the shortest pause, which does not
        grow.
        """
        if not isinstance(ignored, Exception):
            return 0.0
        first, longest, _ = self._backoff
        asked = ignored.retry_after if isinstance(ignored, CircuitOpenError) else 0.0
        return min(max(first, asked), max(first, longest))

    def settled(
        self,
        events: int,
        latency: float,
        ok: bool,
        filled: bool | None,
        permit: Permit,
        error: BaseException | None = None,
        *,
        trial: bool = False,
    ) -> None:
        """Report what became of a batch of `events` events after `latency` seconds.

        filled: whether it had as many events as the batch size asks for; None: it was
            kept smaller by something else, or was a redelivery. trial: more batches
            were out than is known to pay, so its latency says nothing about its size.
        """
        if ok:
            permit.success(latency)
            if not trial:
                self.batching.record(events, latency, filled)
            self.monitor.observe(latency=latency, ok=events)
            self.flow.record_outcome(events, 0)
        elif self.ignores(error):
            permit.ignore()
        else:
            permit.failure(error)
            self.monitor.observe(failed=events)
            self.flow.record_outcome(0, events)

    def due(self, now: float) -> bool:
        """Whether it is time for a tick."""
        return now >= self.next_tick

    def tick(self, now: float, queue: QueueReading) -> Pressure:
        """Feed the policies with what the lanes show, and let them judge."""
        self.next_tick = now + _TICK
        # Large events fill a lane long before they are many.
        threshold = self.monitor.config.queue_depth_threshold
        waiting = sum(queue.waiting) + queue.surplus
        depth = max(waiting, queue.fill / _HIGH_WATERMARK * threshold)
        refusing = self.flow.observe(
            queue.waiting,
            queue.taken,
            enough=int(self.batching.batch_size * _ENOUGH_BATCHES),
            calling=self.breaker.state is State.CLOSED,
            spills=queue.spills,
            room_short=queue.room_short,
        )
        self.monitor.observe(depth=depth, delay=queue.delay, refusing=refusing)
        pressure = self.monitor.evaluate()
        self.batching.evaluate(pressure.pressure, refusing)
        return pressure

    def backoff(self, attempt: int) -> float:
        """Seconds before the next attempt of a batch that failed `attempt` times:
        doubling, capped, and jittered by half so that many buffers do not march in
        step.

        While nothing succeeds it is for the breaker to say how long the sink is left
        alone, and it needs results to open: with longer pauses a lone consumer would
        never bring it as many in one window as it asks for. Once it is open, it says
        when the next attempt goes, and this one may be that.
        """
        first, longest, feeds_breaker = self._backoff
        if feeds_breaker:
            seen = self.breaker.metrics()
            if seen.state is State.CLOSED and seen.window_calls == seen.window_failures:
                config = self.breaker.config
                wanted = config.monitoring_interval / (_RESULTS * config.min_requests)
                longest = max(first, min(longest, wanted))
            elif seen.state is State.OPEN:
                longest = max(first, min(longest, seen.retry_after))
        pause = min(first * 2.0 ** min(attempt - 1, 60), longest)
        return pause * self._rng.uniform(0.5, 1.0)
