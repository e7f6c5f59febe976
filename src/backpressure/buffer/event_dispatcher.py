"""EventDispatcher: carries a buffer's events to handlers and to subscriptions, and
never lets one of them harm the emitter.

    emit(event) ──> number it ──> recent (a small ring, for late subscribers)
                        ├──> subscriptions: a bounded queue each; a slow reader
                        │    loses the oldest, and is told how many
                        └──> handlers: one bounded queue, one thread

A handler runs in a thread of the dispatcher, one after another, in the order of the
events. The emitter waits for it, but for no longer than a budget: 1 % of the time
that passes, 50 ms at once. So a handler that returns promptly has run when the call
that caused the event returns, and one that blocks costs its causer 50 ms once. What
finds the queue full is not handed over, and counted (`overflows`). A handler that
raises is logged and counted (`handler_errors`).

The thread is started by the first event that has a handler, and ends when there has
been none for a while.

Thread safety: everything may be called from any thread, also by a handler. No lock is
held while a handler runs. What a finaliser or a signal's handler does to a dispatcher
that its own thread is changing is put off until that is done (see base/reentry.py): it
returns at once, and its event has no number yet.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from backpressure.base.events import Event, EventType
from backpressure.base.log_limiter import LogLimiter
from backpressure.base.reentry import Reentry, deferrable

__all__ = ["EventDispatcher", "Subscription"]

_log = logging.getLogger("backpressure")

# A subscriber that comes back after a short break finds what it missed; a few hundred
# KB at most.
_RECENT: Final = 512
# Events that wait for handlers; more are not handed over. Hours of ordinary changes, or
# a moment of drops.
_QUEUE: Final = 1024
# Of an emitter's time, the share that it may spend waiting for handlers, and the
# seconds that it may save up. A prompt handler needs some 50 microseconds.
_WAIT_SHARE: Final = 0.01
_WAIT_AT_ONCE: Final = 0.05
# The thread ends after that many seconds without an event.
_IDLE: Final = 5.0

Handler = Callable[[Any], object]
_E = TypeVar("_E", bound=Event)


class Subscription:
    """One reader's own queue of events. Made by `EventDispatcher.subscribe`; ends when
    it is closed or forgotten.
    """

    __slots__ = (
        "__weakref__",
        "_dispatcher",
        "_limit",
        "_pending",
        "_signalled",
        "_types",
        "ended",
        "missed",
        "wake",
    )

    def __init__(
        self, dispatcher: EventDispatcher, types: Collection[EventType], limit: int
    ) -> None:
        self._dispatcher = dispatcher
        self._types = frozenset(types) or None
        self._limit = limit
        self._pending: deque[Event] = deque()
        self._signalled = False
        #: Events lost because they were not taken in time.
        self.missed = 0
        #: No event will come any more; those that wait can still be taken.
        self.ended = False
        #: Called, with no lock held, when there is something after `take` gave None. It
        #: must neither block nor raise.
        self.wake: Callable[[], object] = _do_nothing

    def take(self) -> Event | None:
        """The next event, or None where none waits."""
        try:
            return self._pending.popleft()
        except IndexError:
            # From here on a push calls `wake`; one that came before is found below.
            self._signalled = False
        try:
            return self._pending.popleft()
        except IndexError:
            return None

    def close(self) -> None:
        """Take no more events."""
        self._dispatcher._drop(self)

    def _wants(self, event_type: EventType) -> bool:
        return self._types is None or event_type in self._types

    def _push(self, event: Event) -> bool:
        """With the dispatcher's lock held: queue it; whether `wake` is due."""
        if len(self._pending) >= self._limit:
            try:
                self._pending.popleft()
                self.missed += 1
            except IndexError:
                pass  # the reader has taken all of them meanwhile
        self._pending.append(event)
        if self._signalled:
            # Not written again: the reader may have reset it since, and sleep.
            return False
        self._signalled = True
        return True


class _Due(NamedTuple):
    """An event on its way to its handlers."""

    event: Event
    handlers: tuple[tuple[int, Handler], ...]
    #: Taken until they have run.
    done: threading.Lock


class EventDispatcher:
    """Handlers by event type, subscriptions, and the last events. See the head of this
    module.
    """

    def __init__(self) -> None:
        self._reentry = Reentry(self.leave_to_parent)
        self._lock = self._reentry.lock
        # Both replaced whole and never changed in place, so `wants` reads them without
        # a lock.
        self._handlers: dict[EventType, tuple[tuple[int, Handler], ...]] = {}
        self._subscriptions: tuple[weakref.ref[Subscription], ...] = ()
        self._ids = count(1)
        self._seq = 0
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._queue: deque[_Due] = deque()
        self._work = threading.Condition(self._lock)
        # That which calls handlers; a thread that finds another one here ends.
        self._thread: threading.Thread | None = None
        self._wait_budget = _WAIT_AT_ONCE
        self._budget_at = time.monotonic()
        self._ended = False
        #: Handlers that raised.
        self.handler_errors = 0
        self._few_lines = LogLimiter()
        #: Events that found the handlers' queue full.
        self.overflows = 0

    # ------------------------------------------------------------ who listens

    def on(self, event_type: EventType, handler: Handler) -> Callable[[], None]:
        """Call `handler(event)` for each event of that type from now on; returns a
        function that ends this.
        """
        if not isinstance(event_type, EventType):
            raise TypeError(f"event_type must be an EventType, not {event_type!r}")
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        entry = (next(self._ids), handler)
        self._add_handler(event_type, entry)
        return partial(self._drop_handler, event_type, entry)

    @deferrable
    def _add_handler(self, event_type: EventType, entry: tuple[int, Handler]) -> None:
        with self._lock:
            self._handlers = {
                **self._handlers,
                event_type: (*self._handlers.get(event_type, ()), entry),
            }

    @deferrable
    def _drop_handler(self, event_type: EventType, entry: tuple[int, Handler]) -> None:
        with self._lock:
            kept = tuple(e for e in self._handlers.get(event_type, ()) if e is not entry)
            self._handlers = {**self._handlers, event_type: kept}

    def subscribe(
        self, *types: EventType, since: int | None = None, limit: int = 256
    ) -> Subscription:
        """A queue of the events of these types (none named: all) from now on.

        since: first what is still kept of the events after that number; what is no
            longer, counts as missed. None: nothing old.
        limit: how many may wait; of more the oldest are lost and counted.
        """
        for event_type in types:
            if not isinstance(event_type, EventType):
                raise TypeError(f"types must be of EventType, not {event_type!r}")
        subscription = Subscription(self, types, limit)
        self._add_subscription(subscription, since)
        return subscription

    @deferrable
    def _add_subscription(self, subscription: Subscription, since: int | None) -> None:
        due = False
        with self._lock:
            if since is not None and since < self._seq:
                oldest = self._recent[0].seq
                subscription.missed = max(0, oldest - since - 1)
                for event in self._recent:
                    if event.seq > since and subscription._wants(event.type):
                        due = subscription._push(event) or due
            subscription.ended = self._ended
            # Without those that were forgotten: nothing else tells of them.
            living = (ref for ref in self._subscriptions if ref() is not None)
            self._subscriptions = (*living, weakref.ref(subscription))
        if due or subscription.ended:
            subscription.wake()  # where this was put off, its reader may be waiting

    @deferrable
    def _drop(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(
                ref for ref in self._subscriptions if ref() not in (None, subscription)
            )
            subscription.ended = True
        subscription.wake()

    def wants(self, event_type: EventType) -> bool:
        """Whether anyone listens: lets a caller spare the making of an event."""
        if self._handlers.get(event_type):
            return True
        subscriptions = self._subscriptions
        return bool(subscriptions) and any(
            (one := ref()) is not None and one._wants(event_type) for ref in subscriptions
        )

    @property
    def last_seq(self) -> int:
        """The number of the last event; 0 before the first."""
        return self._seq

    # ------------------------------------------------------------ who tells

    def emit(self, event: _E) -> _E:
        """Number `event` and hand it to who listens; returns the numbered one. Call it
        with no lock held.

        What interrupts another call of its thread returns the event as it was.
        """
        reentry = self._reentry
        if reentry.within():
            reentry.deferred.append(partial(self.emit, event))
            return event
        wakes: list[Callable[[], object]] = []
        done: threading.Lock | None = None
        try:
            with self._lock:
                self._seq += 1
                event = replace(event, seq=self._seq)
                self._recent.append(event)
                for ref in self._subscriptions:
                    subscription = ref()
                    if (
                        subscription is not None
                        and subscription._wants(event.type)
                        and subscription._push(event)
                    ):
                        wakes.append(subscription.wake)
                if handlers := self._handlers.get(event.type):
                    done, thread = self._enqueue(event, handlers)
                    if thread is None:
                        self._work.notify()
            if done is not None and thread is not None:
                # Without the lock: this waits for the new thread, whose finalisers may
                # wait for the lock.
                thread.start()
        except BaseException as error:
            self._not_started()
            # The interpreter shuts down, and starts no more threads.
            if not isinstance(error, RuntimeError):
                raise
            done = None
        for wake in wakes:
            wake()
        if done is not None and self._thread is not threading.current_thread():
            self._wait_for(done)
        if reentry.deferred:
            reentry.apply()
        return event

    @deferrable
    def end(self) -> None:
        """No more events of interest will come: let the subscriptions run out. Handlers
        still hear of what does come.
        """
        with self._lock:
            self._ended = True
            subscriptions = [one for ref in self._subscriptions if (one := ref()) is not None]
            for subscription in subscriptions:
                subscription.ended = True
        for subscription in subscriptions:
            subscription.wake()

    def leave_to_parent(self) -> None:
        """In a forked child: handlers, subscriptions and the thread are the parent's.
        Nothing is told here any more.
        """
        self._work = threading.Condition(self._lock)
        for ref in self._subscriptions:
            if (subscription := ref()) is not None:
                subscription.ended = True  # not woken: its event loop is the parent's too
        self._handlers, self._subscriptions = {}, ()
        self._reentry.deferred.clear()
        self._queue.clear()
        self._recent.clear()
        self._seq = 0
        self._thread = None
        self._ended = True

    # ------------------------------------------------------------ handlers

    def _enqueue(
        self, event: Event, handlers: tuple[tuple[int, Handler], ...]
    ) -> tuple[threading.Lock | None, threading.Thread | None]:
        """With the lock held: hand over to the thread; what to wait for, or None where
        the queue is full, and the thread if it is still to be started.
        """
        if len(self._queue) >= _QUEUE:
            self.overflows += 1
            return None, None
        done = threading.Lock()
        done.acquire()
        self._queue.append(_Due(event, handlers, done))
        before = self._thread
        if before is not None and (before.ident is None or before.is_alive()):
            return done, None
        self._thread = threading.Thread(target=self._run, name="backpressure-events", daemon=True)
        return done, self._thread

    def _not_started(self) -> None:
        """A thread may not have started, for whatever reason: the next event tries
        again, and without one nothing is handed over.
        """
        with self._lock:
            if self._thread is not None and self._thread.ident is None:
                self._thread = None
                self.overflows += len(self._queue)
                self._queue.clear()

    def _wait_for(self, done: threading.Lock) -> None:
        with self._lock:
            now = time.monotonic()
            self._wait_budget = min(
                _WAIT_AT_ONCE, self._wait_budget + (now - self._budget_at) * _WAIT_SHARE
            )
            self._budget_at = now
            # Taken whole, so that of many threads that emit at once no more than one
            # waits for long.
            budget, self._wait_budget = self._wait_budget, 0.0
        done.acquire(timeout=max(budget, 0.0))
        with self._lock:
            self._wait_budget += max(0.0, budget - (time.monotonic() - now))

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                while self._thread is me and not self._queue:
                    if not self._work.wait(_IDLE) and not self._queue:
                        self._thread = None
                if self._thread is not me:
                    return
                due = self._queue.popleft()
            self._call(due)
            due.done.release()
            del due  # an idle thread keeps no objects alive
            if self._reentry.deferred:
                self._reentry.apply()

    def _call(self, due: _Due) -> None:
        for _, handler in due.handlers:
            try:
                handler(due.event)
            except Exception:
                with self._lock:
                    self.handler_errors += 1
                kind = due.event.type.name
                if failed := self._few_lines.add((handler, kind), 1, time.monotonic()):
                    times = f", {failed} times since the last line" if failed > 1 else ""
                    _log.exception("handler %r for %s failed%s", handler, kind, times)


def _do_nothing() -> None:
    pass
