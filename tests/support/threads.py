"""Threads in tests: no wait is endless, and what a thread raises reaches the test."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# Seconds that a thread may take before it counts as stuck: a busy host has been seen to
# need three where an idle one needs none.
PATIENCE = 60.0


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """A bounded wait for another thread or process."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} seconds for nothing"
        time.sleep(0.002)


def in_thread(work: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The result of a call in another thread.

    A call that blocks, on a lock that is held, fails instead of hanging.
    """
    results: list[T] = []
    with background(lambda: results.append(work()), seconds=seconds):
        pass
    return results[0]


def run_threads(
    work: Iterable[Callable[[], object]],
    errors: list[BaseException] | None = None,
    seconds: float = 2 * PATIENCE,
) -> None:
    """Run each at the same time, with thread switches as often as they can be had;
    raise what is raised first.

    `errors` is for threads that wait for each other: one that is not empty tells them
    that another has failed.
    """
    jobs = list(work)
    meet = threading.Barrier(len(jobs))

    def started(job: Callable[[], object]) -> Callable[[], object]:
        return lambda: (meet.wait(seconds), job())

    with switching_often(), background(*map(started, jobs), errors=errors, seconds=seconds):
        pass


@contextmanager
def background(
    *work: Callable[[], object],
    stop: threading.Event | None = None,
    errors: list[BaseException] | None = None,
    seconds: float = PATIENCE,
) -> Iterator[None]:
    """Each in a thread of its own beside the body; then `stop` is set.

    Raises what is raised first.
    """
    raised: list[BaseException] = [] if errors is None else errors

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    # A thread that is stuck is no reason for the whole run not to end.
    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if stop is not None:
            stop.set()
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    if raised:
        raise raised[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


@contextmanager
def switching_often() -> Iterator[None]:
    """Threads take turns every few instructions rather than every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
