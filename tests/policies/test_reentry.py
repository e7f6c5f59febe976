"""Every policy takes calls from finalisers, signal handlers and in forked children."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.policies.backpressure_monitor import (
    BackpressureMonitor,
    BackpressureMonitorConfig,
)
from backpressure.policies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from backpressure.policies.flow_control_manager import FlowControlConfig, FlowControlManager
from backpressure.policies.linger import Linger
from backpressure.testing import FakeClock

Calls = list[Callable[[], object]]
Make = Callable[[FakeClock], tuple[Any, Calls]]


def a_breaker(clock: FakeClock) -> tuple[Any, Calls]:
    breaker = CircuitBreaker(
        CircuitBreakerConfig(
            min_requests=2, window_size=2, reset_timeout=0.001, slow_call_duration=10.0
        ),
        clock=clock,
    )

    def permit(report: str) -> Callable[[], object]:
        def call() -> None:
            given = breaker.try_acquire()
            if given is not None:
                getattr(given, report)()
                given.ignore()

        return call

    def guarded() -> None:
        with contextlib.suppress(Exception), breaker:
            pass
        with contextlib.suppress(Exception):
            breaker.call(int, "no number")

    return breaker, [
        permit("success"),
        permit("failure"),
        permit("ignore"),
        guarded,
        breaker.metrics,
        breaker.retry_after,
        lambda: breaker.state,
        lambda: breaker.record_many(3, 1),
        lambda: breaker.record_many(0, 9),
        breaker.force_open,
        breaker.disable,
        breaker.reset,
    ]


def a_flow(clock: FakeClock) -> tuple[Any, Calls]:
    flow = FlowControlManager(
        FlowControlConfig(max_events_per_second=1e6, burst_size=10_000, delay_target=0.5),
        clock=clock,
    )

    def admit() -> None:
        flow.give_back(flow.admit(7, 3).granted // 2, 3)

    def admit_whole() -> None:
        if flow.admit_whole(7, 3):
            flow.give_back(2, 3)

    return flow, [
        admit,
        admit_whole,
        lambda: flow.admit(1, 5),
        lambda: flow.observe([9] * 5, [9] * 5, enough=5),
        lambda: flow.record_outcome(3, 9),
        lambda: flow.record_outcome(9, 0),
        flow.metrics,
        flow.rate,
        lambda: flow.rate(1),
        lambda: flow.emergency,
        lambda: flow.set_rate(2e6),
        lambda: flow.set_burst(20_000),
        lambda: flow.set_rate(1e6),
    ]


def a_monitor(clock: FakeClock) -> tuple[Any, Calls]:
    monitor = BackpressureMonitor(
        BackpressureMonitorConfig(monitoring_interval=0.001, queue_depth_threshold=10), clock=clock
    )
    return monitor, [
        lambda: monitor.observe(depth=20, delay=1.0, latency=2.0, ok=1, failed=30, refusing=True),
        lambda: monitor.observe(depth=0, delay=0.0, latency=0.1, ok=30, refusing=False),
        monitor.evaluate,
        monitor.history,
        lambda: (monitor.active, monitor.pressure),
    ]


def a_manager(clock: FakeClock) -> tuple[Any, Calls]:
    manager = AdaptiveBatchManager(AdaptiveBatchConfig(evaluation_interval=0.001), clock=clock)
    return manager, [
        *[lambda n=n: manager.record(n, n * 1e-6, True) for n in (100, 40_000, 50_000, 60_000)],
        lambda: manager.flushed("size"),
        lambda: manager.evaluate(0.7, refusing=True),
        manager.evaluate,
        manager.metrics,
        lambda: (manager.batch_size, manager.score, manager.linger),
        lambda: manager.adjust(50_000),
    ]


def a_linger(clock: FakeClock) -> tuple[Any, Calls]:
    linger = Linger(0.005)
    return linger, [
        lambda: linger.holds(clock.now(), 3, 100, int(clock.now() * 1e6)),
        linger.flush,
        lambda: linger.wait_ended(clock.now(), 3, "linger"),
        linger.until,
    ]


policies = pytest.mark.parametrize("make", [a_breaker, a_flow, a_monitor, a_manager, a_linger])


def check_is_free(policy: Any) -> None:
    assert not policy._reentry.within()
    assert not policy._reentry.deferred


@policies
def test_every_call_in_the_middle_of_every_call(make: Make) -> None:
    """At each line of code that a call runs, once, every other call is made."""
    clock = FakeClock(1.0)
    policy, calls = make(clock)
    seen: set[tuple[str, int]] = set()
    made = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal made
        name = frame.f_code.co_filename
        if "backpressure" not in name or "/tests/" in name:
            return None
        if event == "line" and policy._reentry.within():
            place = (name, frame.f_lineno)
            if place not in seen:
                seen.add(place)
                for call in calls:  # not traced: this is the trace function
                    call()
                    made += 1
        return trace

    for _ in range(30):
        for call in calls:
            clock.advance(0.002)
            seen_before = len(seen)
            sys.settrace(trace)
            try:
                call()
            finally:
                sys.settrace(None)
            assert len(seen) >= seen_before
    assert made > 5 * len(calls)
    for call in calls:
        clock.advance(0.002)
        call()
    check_is_free(policy)


# An interpreter without a GIL does not collect at a threshold of 1: what is tested does
# not happen there.
@pytest.mark.single_thread
@policies
def test_calls_from_finalisers(make: Make) -> None:
    clock = FakeClock(1.0)
    policy, calls = make(clock)
    gone = 0

    class Gone:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal gone
            calls[gone % len(calls)]()
            gone += 1

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(40):
            for call in calls:
                Gone()
                clock.advance(0.001)
                call()
    finally:
        gc.set_threshold(*threshold)
    assert gone > 0
    check_is_free(policy)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@policies
def test_calls_from_a_signal_handler(make: Make) -> None:
    clock = FakeClock(1.0)
    policy, calls = make(clock)
    handled = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal handled
        calls[handled % len(calls)]()
        handled += 1

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        end = time.monotonic() + 10.0
        while handled < 300 and time.monotonic() < end:
            for call in calls:
                clock.advance(0.0001)
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert handled >= 300
    calls[0]()
    check_is_free(policy)


def test_what_comes_in_the_middle_of_a_call_counts() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(slow_call_duration=10.0), clock=FakeClock())
    flow = FlowControlManager(clock=FakeClock())
    with breaker._lock, flow._lock:
        permit = breaker.try_acquire()
        assert permit is not None
        permit.success()
        breaker.record_many(2, 1)
        assert flow.admit(10, 2).granted == 10
        flow.give_back(4, 2)
        flow.record_outcome(1, 1)
        flow.set_rate(5.0)
    breaker.record_many(0, 1)
    flow.record_outcome(1, 1)
    seen = breaker.metrics()
    assert (seen.admitted, seen.succeeded, seen.failed) == (1, 3, 2)
    assert flow.metrics().admitted == (0, 6, 0, 0, 0)
    assert (flow.metrics().rate_limit, flow.metrics().failure_rate) == (5.0, 0.5)


def test_listeners_hear_of_a_change_with_no_lock_held() -> None:
    heard: list[bool] = []
    breaker = CircuitBreaker(on_change=lambda *_: heard.append(breaker._reentry.within()))
    with breaker._lock:
        breaker.force_open()
        assert not heard
    breaker.record_many(1, 0)
    assert heard == [False]


def test_a_flush_in_the_middle_of_a_question_ends_the_wait() -> None:
    linger = Linger(0.005)
    linger.holds(0.0, 0, 100, 0)
    linger.left_at = 1.0
    linger.holds(0.999, 0, 100, 10_000)
    assert linger.holds(1.0001, 5, 100, 30_000)
    with linger._lock:
        linger.flush()
    assert not linger.holds(1.0002, 6, 100, 30_000)
    assert (linger.holding, linger.flushed) == (True, True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_listener_that_forks_in_a_call_that_was_put_off() -> None:
    pids: list[int] = []

    def fork(*_: object) -> None:
        pids.append(os.fork())

    breaker = CircuitBreaker(on_change=fork)
    with breaker._lock:
        breaker.force_open()
    code = 1
    try:
        breaker.record_many(1, 0)
        if pids == [0]:
            with breaker._lock:
                breaker.record_many(1, 0)
            breaker.record_many(1, 0)
            code = int(breaker.metrics().succeeded != 3)
    finally:
        if pids == [0]:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@policies
def test_a_child_forked_while_a_thread_holds_the_lock_goes_on(make: Make) -> None:
    clock = FakeClock(1.0)
    policy, calls = make(clock)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with policy._lock:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(20)
                for _ in range(5):
                    for call in calls:
                        clock.advance(0.002)
                        call()
                check_is_free(policy)
                code = 0
            finally:
                os._exit(code)
    finally:
        release.set()
        holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check_is_free(policy)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@policies
def test_children_forked_while_a_thread_hammers_go_on(make: Make) -> None:
    clock = FakeClock(1.0)
    _, calls = make(clock)
    over = threading.Event()

    def hammer() -> None:
        while not over.is_set():
            for call in calls:
                call()

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        codes = []
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(20)
                    for call in calls:
                        clock.advance(0.002)
                        call()
                    code = 0
                finally:
                    os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    finally:
        over.set()
        thread.join()
    assert codes == [0] * 40
