"""Waiting on a ring of either kind: threads that sleep, signals that interrupt them,
event loops that listen. With and without a file, through the ring or through handles.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringbuf import MessageRing, RingBuffer
from ringbuf._messages.gathered import Gathered

# A wait that takes this long (seconds) has hung: far longer than any scheduling delay.
LONG = 30.0


class Subject:
    """A small ring of either kind, as a ring of numbers. `_in` and `_out` are what it
    is pushed and popped by.
    """

    def __init__(self, ring: Any, handles: bool) -> None:
        self.ring = ring
        self._in = ring.producer() if handles else ring
        self._out = ring.consumer() if handles else ring

    def __len__(self) -> int:
        return len(self.ring)

    def fill(self) -> None:
        while self.try_push(0):
            pass

    def try_push(self, number: int) -> bool:
        raise NotImplementedError

    def push(self, number: int, timeout: Any = None) -> bool:
        raise NotImplementedError

    def push_many(self, numbers: Sequence[int], timeout: Any = 0.0) -> int:
        raise NotImplementedError

    def pop_many(self, most: int | None = None, timeout: Any = 0.0) -> list[int]:
        raise NotImplementedError

    def ways_to_push(self, number: int) -> list[Callable[[], object]]:
        return [
            lambda: self.try_push(number),
            lambda: self.push(number),
            lambda: self.push_many([number]),
        ]

    def ways_to_pop(self) -> list[Callable[[], object]]:
        return [lambda: self.pop_many(3)]

    @contextlib.contextmanager
    def three_held(self) -> Iterator[None]:
        """Three are taken, and their room is free at the end."""
        raise NotImplementedError
        yield

    def another(self) -> Subject:
        """The same ring, as another process attaches to it."""
        return type(self)(type(self.ring).attach(self.ring.path), False)

    def fileno(self) -> int:
        found: int = self._out.fileno()
        return found

    def check(self) -> None:
        self.ring._check()


class MessageSubject(Subject):
    @staticmethod
    def of(number: int) -> bytes:
        return b"%d" % number + bytes(100)

    def try_push(self, number: int) -> bool:
        done: bool = self._in.try_push(self.of(number))
        return done

    def push(self, number: int, timeout: Any = None) -> bool:
        done: bool = self._in.push(self.of(number), timeout)
        return done

    def push_many(self, numbers: Sequence[int], timeout: Any = 0.0) -> int:
        done: int = self._in.push_many([self.of(number) for number in numbers], timeout=timeout)
        return done

    def pop_many(self, most: int | None = None, timeout: Any = 0.0) -> list[int]:
        return [int(message.rstrip(b"\0")) for message in self._out.pop_many(most, timeout=timeout)]

    def ways_to_push(self, number: int) -> list[Callable[[], object]]:
        return [*super().ways_to_push(number), lambda: self._in.push_lines(self.of(number) + b"\n")]

    def ways_to_pop(self) -> list[Callable[[], object]]:
        def try_pop() -> None:
            for _ in range(3):
                assert self._out.try_pop() is not None

        return [*super().ways_to_pop(), try_pop]

    @contextlib.contextmanager
    def three_held(self) -> Iterator[None]:
        held = self._out.take(3)
        yield
        self._out.release(held)


class RecordSubject(Subject):
    def try_push(self, number: int) -> bool:
        done: bool = self._in.try_push(number)
        return done

    def push(self, number: int, timeout: Any = None) -> bool:
        done: bool = self._in.push(number, timeout)
        return done

    def push_many(self, numbers: Sequence[int], timeout: Any = 0.0) -> int:
        done: int = self._in.push_many(numbers, timeout=timeout)
        return done

    def pop_many(self, most: int | None = None, timeout: Any = 0.0) -> list[int]:
        got: list[int] = self._out.pop_many(most, timeout=timeout).tolist()
        return got

    def ways_to_push(self, number: int) -> list[Callable[[], object]]:
        def reserve() -> None:
            with self._in.reserve(1) as span:
                span[0] = number

        return [*super().ways_to_push(number), reserve]

    def ways_to_pop(self) -> list[Callable[[], object]]:
        def peek() -> None:
            with self._out.peek(3):
                pass

        def try_pop() -> None:
            for _ in range(3):
                assert self._out.try_pop() is not None

        def pop() -> None:
            for _ in range(3):
                assert self._out.pop() is not None

        return [
            *super().ways_to_pop(),
            peek,
            try_pop,
            pop,
            lambda: self._out.pop_many(out=np.zeros(3, np.int64)),
        ]

    @contextlib.contextmanager
    def three_held(self) -> Iterator[None]:
        with self._out.peek(3):
            yield


@pytest.fixture(params=["messages", "records", "records-by-exchanges"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "file"])
def ring(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> Subject:
    path = None
    if request.param == "file":
        if sys.platform != "linux":
            pytest.skip("path= needs Linux")
        path = tmp_path / "ring"
    # Handles and rings share all their code but the entrances: each is met in two of
    # four.
    if kind == "messages":
        return MessageSubject(MessageRing(4096, path=path), handles=path is None)
    records = RingBuffer(32, np.int64, path=path)
    if kind == "records-by-exchanges" and path is None:
        records._use_exchanges()
    return RecordSubject(records, handles=(path is None) == (kind == "records"))


def asleep(work: Callable[[], object]) -> threading.Thread:
    """Start a thread that does something after the caller had time to fall asleep."""
    thread = threading.Timer(0.02, work)
    thread.start()
    return thread


def test_a_timeout_ends_with_nothing(ring: Subject) -> None:
    start = time.monotonic()
    assert ring.pop_many(timeout=0.03) == []
    assert 0.03 <= time.monotonic() - start < LONG
    ring.fill()
    start = time.monotonic()
    assert ring.push(1, timeout=0.03) is False
    assert ring.push_many([1], timeout=0.03) == 0
    assert 0.06 <= time.monotonic() - start < LONG


def test_a_pop_is_woken_by_a_push(ring: Subject) -> None:
    for number, push in enumerate(ring.ways_to_push(7)):
        thread = asleep(push)
        assert ring.pop_many(timeout=LONG) == [7], number
        thread.join()


def test_a_push_is_woken_by_room(ring: Subject) -> None:
    for pop in ring.ways_to_pop():
        ring.fill()
        thread = asleep(pop)
        assert ring.push(1) is True
        thread.join()
    ring.fill()
    held = ring.three_held()
    held.__enter__()
    thread = asleep(lambda: held.__exit__(None, None, None))
    assert ring.push_many([1] * 2, timeout=LONG) == 2
    thread.join()


def test_a_long_push_goes_through_a_small_ring(ring: Subject) -> None:
    numbers = list(range(2000))
    got: list[int] = []

    def drain() -> None:
        while len(got) < len(numbers):
            got.extend(ring.pop_many(100, timeout=LONG))

    thread = threading.Thread(target=drain)
    thread.start()
    assert ring.push_many(numbers, timeout=None) == len(numbers)
    thread.join()
    assert got == numbers


def test_many_sleepers_are_all_woken(ring: Subject) -> None:
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.extend(ring.pop_many(1, timeout=LONG)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for i in range(8):
        assert ring.push(i, timeout=LONG)
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8))


def test_a_signal_interrupts_a_wait(ring: Subject) -> None:
    class AlarmError(Exception):
        pass

    def on_alarm(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(AlarmError):
            ring.pop_many(timeout=None)
        ring.fill()
        pushes: list[Callable[[], object]] = [
            lambda: ring.push(1),
            lambda: ring.push_many([1, 2], timeout=None),
        ]
        for push in pushes:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(AlarmError):
                push()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ring.check()


NONSENSE = (
    *(-1, -1e-9, float("nan"), -float("inf"), "1", b"", True, False, [1]),
    *(np.float32(-1), np.float64("nan"), np.int64(-1), np.True_),
)


@pytest.mark.parametrize("filled", [True, False])
def test_nonsense_is_refused_at_once(ring: Subject, filled: bool) -> None:
    """Also where nothing would have to be waited for, and before anything is pushed or
    taken.
    """
    if filled:
        ring.fill()
    before = len(ring)
    for timeout in NONSENSE:
        with pytest.raises(ValueError, match="timeout"):
            ring.push(1, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            ring.push_many([1], timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            ring.pop_many(timeout=timeout)
        if isinstance(ring, RecordSubject):
            with pytest.raises(ValueError, match="timeout"):
                ring._out.pop(timeout)
            with pytest.raises(ValueError, match="timeout"):
                ring._in.push_many(np.zeros(1, np.int64), timeout)
    assert len(ring) == before
    ring.check()


@pytest.mark.parametrize(
    "timeout",
    [
        *(0, 0.0, -0.0, 1e-9, 10**400, float("inf"), None),
        *(np.float64(1), np.float32(1), np.int64(1), np.uint8(1)),
    ],
)
def test_any_number_of_seconds_is_a_timeout(ring: Subject, timeout: Any) -> None:
    assert ring.push(1, timeout=timeout)
    assert ring.push_many([2, 3], timeout=timeout) == 2
    assert ring.pop_many(timeout=timeout) == [1, 2, 3]


@pytest.mark.parametrize("count", [1.5, 2.0, "3", b"3", True, [1], float("nan"), np.float64(1)])
def test_what_is_no_count_is_refused_by_name(ring: Subject, count: Any) -> None:
    ring.push_many([1, 2, 3])
    out = ring._out
    if isinstance(ring, MessageSubject):
        lines = MessageRing(4096)
        taken = out.take()
        calls = {
            "max_messages": [
                partial(out.pop_many, count),
                partial(out.take, count),
                partial(ring.ring.take_orphaned, count),
                partial(ring.ring.push_gathered, Gathered([b"a"]), 0, count),
            ],
            "start": [
                partial(ring.ring.push_gathered, Gathered([b"a"]), count),
                partial(taken.join_into, bytearray(9), count),
            ],
            "seq": [partial(ring.ring.note_stored, count)],
            "most_bytes": [partial(ring.ring.warm_ahead, count)],
            "max_bytes": [
                partial(out.pop_many, None, count),
                partial(out.take, None, count),
                partial(ring.ring.take_orphaned, None, count),
            ],
            "count": [partial(out.split, taken, count)],
            "max_lines": [partial(lines.push_lines_seq, b"a\n", max_lines=count)],
            "capacity_bytes": [partial(MessageRing, count)],
            "first_seq": [partial(MessageRing, 4096, first_seq=count)],
        }
    else:
        calls = {
            "max_items": [partial(out.pop_many, count)],
            "n": [partial(out.peek, count), partial(ring._in.reserve, count)],
            "capacity": [partial(RingBuffer, count, "i8")],
        }
    for name, ways in calls.items():
        for way in ways:
            with pytest.raises(
                TypeError, match=f"^{name} must be an int, not {type(count).__name__}"
            ):
                way()
    if isinstance(ring, MessageSubject):
        assert len(taken) == 3
        out.release(taken)
    else:
        assert len(ring) == 3


@pytest.mark.parametrize("count", [0, -1, -(10**30)])
def test_a_count_below_one_is_refused_by_name(ring: Subject, count: int) -> None:
    ring.push_many([1, 2, 3])
    if isinstance(ring, MessageSubject):
        with pytest.raises(ValueError, match="max_lines"):
            ring.ring.push_lines_seq(b"a\n", max_lines=count)
        with pytest.raises(ValueError, match="max_messages"):
            ring.ring.push_gathered(Gathered([b"a"]), 0, count)
        taken = ring._out.take()
        if count < 0:
            with pytest.raises(ValueError, match=r"^start must be from 0 to 1, not -"):
                ring.ring.push_gathered(Gathered([b"a"]), count)
            with pytest.raises(ValueError, match=r"^start must be from 0 to 3, not -"):
                taken.join_into(bytearray(9), count)
            with pytest.raises(ValueError, match=r"^seq must be from 0 to"):
                ring.ring.note_stored(count)
            with pytest.raises(ValueError, match=r"^most_bytes must be from 0 to"):
                ring.ring.warm_ahead(count)
        with pytest.raises(ValueError, match="count"):
            ring._out.split(taken, count)
        with pytest.raises(ValueError, match="count"):
            ring._out.split(taken, 10**30)
        ring._out.release(taken)
    else:
        with pytest.raises(ValueError, match="max_items"):
            ring._out.pop_many(count)
    ring.push_many([4])
    assert ring.pop_many(10**30)[-1] == 4
    assert ring.pop_many(np.int8(3)) == []  # type: ignore[arg-type]


def test_an_event_loop_listens_without_a_thread(ring: Subject) -> None:
    got: list[int] = []

    async def main() -> None:
        done = asyncio.Event()

        def ready() -> None:
            got.extend(ring.pop_many(2))
            if 99 in got:
                done.set()

        ring.push_many([1, 2])
        loop = asyncio.get_running_loop()
        loop.add_reader(ring, ready)
        for delay, numbers in ((0.01, [3, 4, 5]), (0.02, [6]), (0.03, [99])):
            loop.call_later(delay, ring.push_many, numbers)
        await asyncio.wait_for(done.wait(), LONG)
        loop.remove_reader(ring)

    asyncio.run(main())
    assert got == [1, 2, 3, 4, 5, 6, 99]


def readable(ring: Subject, timeout: float = 0) -> bool:
    return bool(select.select([ring], [], [], timeout)[0])


def test_the_descriptor_is_readable_while_there_is_something(ring: Subject) -> None:
    """Checked from push to pop, each within some us: a shared ring's also becomes
    readable by itself every 50 ms.
    """
    ring.fileno()
    for _ in range(3):
        for push in ring.ways_to_push(5):
            assert ring.pop_many() == []
            before = time.monotonic()
            assert not readable(ring) or time.monotonic() - before > 0.04
            push()
            assert readable(ring, LONG)
            assert readable(ring)
            assert ring.pop_many() == [5]


def test_a_descriptor_that_a_forked_child_inherits_is_its_parent_s(ring: Subject) -> None:
    ring.fileno()
    ring.pop_many()
    ring.try_push(3)
    pid = os.fork()
    if pid == 0:
        ring.pop_many()  # takes what is there, where processes share the ring
        ring.pop_many()  # finds nothing, and would clear what it listens to
        os._exit(0)
    os.waitpid(pid, 0)
    assert readable(ring, 0)


@pytest.mark.platform
@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
class TestSeveralProcesses:
    @pytest.fixture(params=["messages", "records"])
    def shared(self, request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
        path = tmp_path / "ring"
        if request.param == "messages":
            return MessageSubject(MessageRing(4096, path=path), False)
        return RecordSubject(RingBuffer(32, np.int64, path=path), False)

    @staticmethod
    def in_child(work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(0)
        return pid

    @staticmethod
    def listen(ring: Subject) -> list[int]:
        async def main() -> list[int]:
            future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

            def ready() -> None:
                numbers = ring.pop_many()
                if numbers and not future.done():
                    future.set_result(numbers)

            asyncio.get_running_loop().add_reader(ring, ready)
            return await asyncio.wait_for(future, LONG)

        return asyncio.run(main())

    def test_a_push_of_another_process_wakes_threads_and_event_loops(self, shared: Subject) -> None:
        def push(number: int) -> None:
            other = shared.another()
            time.sleep(0.03)
            other.try_push(number)

        pid = self.in_child(lambda: push(1))
        assert shared.pop_many(timeout=LONG) == [1]
        os.waitpid(pid, 0)
        pid = self.in_child(lambda: push(2))
        assert self.listen(shared) == [2]
        os.waitpid(pid, 0)

    def test_room_that_another_process_makes_wakes_a_push(self, shared: Subject) -> None:
        def pop() -> None:
            other = shared.another()
            time.sleep(0.03)
            other.pop_many()

        shared.fill()
        pid = self.in_child(pop)
        assert shared.push(1, timeout=LONG)
        os.waitpid(pid, 0)

    def test_an_event_loop_hears_of_what_a_killed_consumer_had_taken(self, shared: Subject) -> None:
        """Nothing tells it: it has to find out by itself."""
        reader, writer = os.pipe()

        def take() -> None:
            other = shared.another()
            other.three_held().__enter__()
            os.write(writer, b"x")
            signal.pause()

        shared.push_many([1, 2, 3])
        pid = self.in_child(take)
        os.read(reader, 1)
        threading.Timer(0.03, os.kill, (pid, signal.SIGKILL)).start()
        try:
            assert self.listen(shared) == [1, 2, 3]
        finally:
            os.waitpid(pid, 0)
            os.close(reader)
            os.close(writer)

    def test_a_ring_that_is_opened_again_listens_though_a_child_keeps_the_old_descriptor(
        self, shared: Subject
    ) -> None:
        shared.fileno()
        first = shared.another()
        first.fileno()
        pid = self.in_child(signal.pause)
        try:
            del first
            again = shared.another()
            again.fileno()
            again.pop_many()
            assert not readable(again)
            shared.try_push(1)
            assert readable(again, LONG)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_a_push_that_can_not_call_has_pushed(self, shared: Subject) -> None:
        """At the limit of descriptors, with an event loop of another process that
        listens: it is in once, without an error.
        """
        listening, said, go_on, to_go_on = *os.pipe(), *os.pipe()

        def listen() -> None:
            other = shared.another()
            other.fileno()
            assert other.pop_many() == []
            os.write(said, b"x")
            pushed = os.read(go_on, 1) == b"y"
            os.write(
                said,
                b"y" if pushed and readable(other, LONG) and other.pop_many() == [17] else b"n",
            )

        pid = self.in_child(listen)
        os.read(listening, 1)

        def push() -> None:
            import resource

            answer = b"n"
            # In a child, whose first use opened the file anew, and which has no socket
            # to call from yet.
            shared.pop_many()
            most = max(map(int, os.listdir("/proc/self/fd"))) + 3
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            with contextlib.suppress(OSError):
                while True:
                    os.dup(0)
            try:
                answer = b"y" if shared.try_push(17) else b"n"
            finally:
                os.write(to_go_on, answer)

        os.waitpid(self.in_child(push), 0)
        assert os.read(listening, 1) == b"y"
        os.waitpid(pid, 0)
        for fd in (listening, said, go_on, to_go_on):
            os.close(fd)

    def test_no_python_code_runs_in_a_push_that_wakes_others(self, shared: Subject) -> None:
        """So no signal's handler does, which could raise although the message is in."""
        shared.fileno()
        assert shared.pop_many() == []
        ring, item = shared.ring, MessageSubject.of(1) if isinstance(shared, MessageSubject) else 1
        seen: list[str] = []

        def profile(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                seen.append(frame.f_code.co_name)

        ring.try_push(item)
        ring.pop_many()
        ring.pop_many()  # listens
        sys.setprofile(profile)
        try:
            ring.try_push(item)
            ring.pop_many()
            ring.pop_many()
        finally:
            sys.setprofile(None)
        assert seen == []
        assert len(ring) == 0


class NotAnIndex:
    def __index__(self) -> Any:
        return "one"


def test_an_index_that_is_none_is_python_s_own_error(ring: Subject) -> None:
    with pytest.raises(TypeError, match="__index__ returned non-int"):
        ring._out.pop_many(NotAnIndex())
