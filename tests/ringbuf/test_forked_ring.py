"""A fork of a process that shares rings and buckets, and the participant slots that are
taken at need. A child that cannot use what it inherits does no harm, and says what is
missing.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, RingBuffer, TokenBucket
from ringbuf._shared import shared_file
from tests.support.processes import run_python
from tests.support.threads import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

#: Longer than the pause between two checks for dead participants.
_A_LOOK = 0.002
PARTICIPANTS = 32


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns, or raises, in a forked child that is killed right after."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            try:
                result = repr(work())
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            os.write(writer, result.encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        result = said.read().decode()
    os.waitpid(pid, 0)
    time.sleep(_A_LOOK)
    return result


@pytest.fixture
def ring(tmp_path: Path) -> MessageRing:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many([b"order %d" % i for i in range(10)])
    return ring


ORDERS = [b"order %d" % i for i in range(10)]


def fill_descriptors() -> list[int]:
    """Open until no more can be; returns some of them."""
    most = max(map(int, os.listdir("/proc/self/fd"))) + 3
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    opened: list[int] = []
    try:
        while True:
            opened.append(os.dup(0))
    except OSError:
        return opened


class NoProc:
    """As long as the block lasts, there is no /proc."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __enter__(self) -> None:
        self._monkeypatch.setattr(shared_file, "_PROC", "/nowhere")

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.undo()


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> NoProc:
    return NoProc(monkeypatch)


def participants(ring: MessageRing) -> int:
    assert ring.path is not None
    return MessageRing.look(ring.path).participants


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


# ------------------------------------------------------------ participant slots at need


def test_a_process_that_only_attaches_uses_no_slot(tmp_path: Path, ring: MessageRing) -> None:
    others = [MessageRing.attach(tmp_path / "ring") for _ in range(PARTICIPANTS + 8)]
    assert participants(ring) == 1
    assert [len(other) for other in others] == [10] * (PARTICIPANTS + 8)
    assert others[-1].next_seq == others[0].count() == 10
    others[3].take(1)
    assert participants(ring) == 2


def test_a_child_that_touches_nothing_uses_no_slot_and_keeps_none(ring: MessageRing) -> None:
    assert in_child(lambda: (participants(ring), len(ring))) == "(1, 10)"


def test_many_threads_that_begin_at_once_take_one_slot(ring: MessageRing) -> None:
    assert ring.path is not None
    other = MessageRing.attach(ring.path)
    start = threading.Barrier(8)

    def push() -> None:
        start.wait()
        other.push_many([b"x"] * 3)

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert participants(ring) == 2
    assert len(ring) == 10 + 24


def test_the_first_use_says_that_all_slots_are_taken_and_the_next_tries_again(
    tmp_path: Path,
) -> None:
    cases: list[tuple[Callable[[Path], Any], Callable[[Any], object]]] = [
        (lambda path: MessageRing(1 << 12, path=path), lambda ring: ring.try_push(b"x")),
        (lambda path: RingBuffer(64, "i8", path=path), lambda ring: ring.try_push(1)),
        (lambda path: RingBuffer(64, "i8", path=path), lambda ring: ring.pop_many()),
        (lambda path: MessageRing(1 << 12, path=path), lambda ring: ring.take()),
        (lambda path: MessageRing(1 << 12, path=path), lambda ring: ring.try_pop()),
        (lambda path: RingBuffer(64, [("a", "i8")], path=path), lambda ring: ring.try_push((1,))),
        (lambda path: RingBuffer(64, [("a", "i8")], path=path), lambda ring: ring.try_pop()),
        (lambda path: MessageRing(1 << 12, path=path), lambda ring: ring.fileno()),
    ]
    for make, use in cases:
        path = tmp_path / "shared"
        rings: list[Any] = [make(path) for _ in range(PARTICIPANTS)]
        for ring in rings:
            use(ring)
        late = make(path)
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"all 32 participant slots are taken.*fewer processes"
            ):
                use(late)
        assert in_child(lambda: use(rings[0])).startswith("RuntimeError: ")  # noqa: B023
        rings.pop().close()
        use(late)
        path.unlink()


# -------------------------------------------------------- what a killed child had taken


def test_what_a_killed_child_took_comes_again(ring: MessageRing) -> None:
    for handle in (ring, ring.consumer()):
        taken = in_child(lambda: (handle.take(3).tolist(), participants(ring)))  # noqa: B023
        assert taken == repr((ORDERS[:3], 2))
        again = ring.take_orphaned()
        assert again.tolist() == ORDERS[:3]
        ring.release(again)
        ring.push_many(ORDERS[:3])
        ring.release(ring.take(7))  # back to the order of before
        ring.push_many(ORDERS[3:])


def test_at_the_limit_of_descriptors_a_child_takes_nothing(ring: MessageRing) -> None:
    def work() -> object:
        spare = fill_descriptors()
        errors = []
        for _ in range(2):
            try:
                ring.take()
            except OSError as error:
                errors.append((error.errno == errno.EMFILE, "ulimit -n" in str(error)))
        os.close(spare.pop())
        return errors, len(ring.take(4))

    assert in_child(work) == repr(([(True, True)] * 2, 4))
    assert ring.take_orphaned().tolist() == ORDERS[:4]
    assert ring.pop_many().tolist() == ORDERS[4:]


def test_a_child_of_a_parent_at_the_limit(ring: MessageRing) -> None:
    """The fork itself needs no descriptor. That of the locks, which the child may not
    keep, serves to open the file anew.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    full = fill_descriptors()
    try:
        for fd in full[:2]:
            os.close(fd)  # for the pipe that the child answers through
        assert in_child(lambda: len(ring.take(4))) == "4"
    finally:
        for fd in full[2:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert ring.take_orphaned().tolist() == ORDERS[:4]


def test_without_proc_the_name_will_do(ring: MessageRing, no_proc: NoProc) -> None:
    with no_proc:
        assert in_child(lambda: len(ring.take(2))) == "2"
    assert ring.take_orphaned().tolist() == ORDERS[:2]


def test_a_file_without_a_name_is_opened_through_proc(
    tmp_path: Path, ring: MessageRing, no_proc: NoProc
) -> None:
    (tmp_path / "ring").unlink()

    def try_twice() -> object:
        with no_proc:
            try:
                ring.try_push(b"x")
                return None
            except OSError as error:
                said = str(error)
        return "mount -t proc" in said, len(ring.take(2))

    assert in_child(try_twice) == "(True, 2)"
    assert ring.take_orphaned().tolist() == ORDERS[:2]
    # Another file under that name is not taken for it.
    (tmp_path / "ring").write_bytes(b"something else")
    with no_proc:
        assert "mount -t proc" in in_child(lambda: ring.try_push(b"x"))
    assert (tmp_path / "ring").read_bytes() == b"something else"


def test_of_many_rings_one_fails(tmp_path: Path, no_proc: NoProc) -> None:
    rings = [MessageRing(1 << 12, path=tmp_path / f"{i}") for i in range(5)]
    for ring in rings:
        ring.push_many([b"a", b"b"])
    bucket = TokenBucket(0, 5, path=tmp_path / "bucket")
    records = RingBuffer(8, "i8", path=tmp_path / "records")
    records.push_many([1, 2])
    for gone in (0, 3):
        (tmp_path / f"{gone}").unlink()

    def work() -> object:
        done: list[object] = []
        with no_proc:
            for ring in rings:
                try:
                    done.append(ring.take(1).tolist())
                except OSError:
                    done.append(None)
            span = records.peek(1)
            done += [span.__enter__()[0], bucket.try_acquire(2)]
        globals()["kept"] = span
        return done

    assert in_child(work) == repr([None, [b"a"], [b"a"], None, [b"a"], 1, True])
    for ring in rings:
        assert sorted(ring.take_orphaned().tolist() + ring.pop_many().tolist()) == [b"a", b"b"]
    assert sorted(records.pop_many().tolist() + records.pop_many().tolist()) == [1, 2]
    assert bucket.tokens == 3


def test_parent_and_child_share_no_slot(ring: MessageRing) -> None:
    """Both at work at once: the child's kill leaves the parent's takes alone."""
    mine = ring.take(2)
    assert in_child(lambda: len(ring.take(3))) == "3"
    assert ring.take_orphaned().tolist() == ORDERS[2:5]
    ring.release(mine)
    assert ring.pop_many().tolist() == ORDERS[5:]


def test_a_child_pops_what_its_parent_has_not_taken(ring: MessageRing) -> None:
    mine = ring.take(2)
    assert in_child(lambda: (ring.try_pop(), ring.try_pop())) == repr((ORDERS[2], ORDERS[3]))
    assert ring.try_pop() == ORDERS[4]
    ring.release(mine)
    assert ring.pop_many().tolist() == ORDERS[5:]
    ring._check()


def test_a_grandchild_is_no_other_case(ring: MessageRing) -> None:
    def child() -> object:
        first = len(ring.take(1))
        return first, in_child(lambda: len(ring.take(2)))

    assert in_child(child) == "(1, '2')"
    assert sorted(ring.take_orphaned().tolist() + ring.take_orphaned().tolist()) == ORDERS[:3]


def test_fork_beside_threads_that_work(ring: MessageRing) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            ring.push_many([b"x"] * 5)
            ring.pop_many(4)
            ring.try_pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            # What a child took and was killed with may be all that keeps the ring full.
            said = in_child(lambda: (ring.try_push(b"y"), len(ring.take(2)) <= 2))
            assert said in ("(True, True)", "(False, True)")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    time.sleep(_A_LOOK)
    while len(ring.pop_many()):
        pass
    ring._check()
    assert ring.used_bytes == 0


def test_a_bucket_s_child_takes_its_slot_at_need(tmp_path: Path, no_proc: NoProc) -> None:
    bucket = TokenBucket(10, 5, now_ns=0, path=tmp_path / "bucket")
    assert bucket.try_acquire_at(0)

    def fail_then_take() -> object:
        spare = fill_descriptors()
        try:
            bucket.try_acquire_at(0)
        except OSError as error:
            first = error.errno
        os.close(spare.pop())
        return first == errno.EMFILE, bucket.tokens_at(0), bucket.try_acquire_at(0, 2)

    assert in_child(fail_then_take) == "(True, 4.0, True)"
    assert bucket.tokens_at(0) == 2.0


# -------------------------------------------------------- other ways to start a process


def take_and_die(path: str, count: int) -> None:
    MessageRing.attach(path).take(count)
    os.kill(os.getpid(), signal.SIGKILL)


inherited: Any = None


def take_inherited(count: int) -> None:
    inherited.take(count)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing(ring: MessageRing, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    global inherited
    inherited = ring
    works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(take_and_die, (ring.path, 2))]
    if method == "fork":
        works.append((take_inherited, (2,)))
    for target, args in works:
        process = context.Process(target=target, args=args)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        time.sleep(_A_LOOK)
        again = ring.take_orphaned()
        assert again.tolist() == ORDERS[:2]
        ring.release(again)
        ring.pop_many()
        ring.push_many(ORDERS)
    inherited = None


# ---------------------------------------------------------------- no /proc


def test_no_proc_is_not_no_ring(tmp_path: Path, no_proc: NoProc) -> None:
    MessageRing(1 << 12, path=tmp_path / "ring").try_push(b"x")
    TokenBucket(1, 1, path=tmp_path / "bucket")
    with no_proc:
        for use in (
            lambda: MessageRing(1 << 12, path=tmp_path / "new"),
            lambda: RingBuffer(8, "i8", path=tmp_path / "new"),
            lambda: TokenBucket(1, 1, path=tmp_path / "new"),
            lambda: TokenBucket.attach(tmp_path / "bucket"),
            lambda: MessageRing.look(tmp_path / "ring"),
            lambda: MessageRing.needs_salvage(tmp_path / "ring"),
            lambda: MessageRing.attach("/proc/self/fd/999"),
        ):
            with pytest.raises(OSError, match="mount -t proc") as caught:
                use()
            assert not isinstance(caught.value, FileNotFoundError)
        # The name leads to the file too.
        assert MessageRing.attach(tmp_path / "ring").pop_many().tolist() == [b"x"]


def test_a_fork_while_another_thread_attaches_keeps_no_slot(tmp_path: Path) -> None:
    """At whatever moment the fork comes, the child, which lives on, has nothing by
    which a slot of its parent stays taken.
    """
    path = tmp_path / "ring"
    MessageRing(1 << 12, path=path)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            ring = MessageRing.attach(path)
            ring.pop_many()
            ring.close()

    thread = threading.Thread(target=work)
    thread.start()
    children = []
    try:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    finally:
        stop.set()
        thread.join()
    try:
        # The last child may not have come to its handler yet.
        until(lambda: MessageRing.look(path).participants == 0)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("first_of", ["what waits", "all orphaned", "some orphaned"])
def test_a_fork_in_the_midst_of_a_take_leaves_the_parent_s_slot_alone(
    tmp_path: Path, first_of: str
) -> None:
    """A collection that the take's own memory begins can run anything, also a fork."""
    code = """
        import gc, os, sys
        from ringbuf import MessageRing
        path, first_of = sys.argv[1:]
        ring = MessageRing(1 << 16, path=path)
        ring.push_many([b"m%d" % i for i in range(10)])
        orphans = {"what waits": 0, "all orphaned": 10, "some orphaned": 7}[first_of]
        if orphans:
            if os.fork() == 0:
                held = ring.take(orphans)
                os.kill(os.getpid(), 9)
            os.wait()
        first = 0
        if first_of == "some orphaned":  # noticed, so that a take begins with them
            ring.release(ring.take_orphaned(1))
            first = 1
        mine, its = ([b"m%d" % i for i in range(at, at + 3)] for at in (first, first + 3))
        parent, taken, ended = os.getpid(), os.pipe(), os.pipe()

        def fork(phase, info):
            gc.callbacks.clear()
            gc.set_threshold(700)
            if os.fork() == 0:
                os.close(ended[0])
                os.read(taken[0], 1)  # until its parent has taken, by the slot that this began with

        take = ring.take_orphaned if first_of == "all orphaned" else ring.take
        gc.collect()
        gc.callbacks.append(fork)
        gc.set_threshold(1)
        messages = take(3)
        gc.set_threshold(700)
        assert not gc.callbacks, "nothing was collected"
        if os.getpid() != parent:
            assert messages.tolist() == its, messages.tolist()
            ring.release(messages)
            os._exit(0)
        os.close(ended[1])
        os.write(taken[1], b".")
        os.read(ended[0], 1)
        _, status = os.wait()
        assert status == 0, "the child failed"
        assert messages.tolist() == mine, messages.tolist()
        os.kill(parent, 9)
    """
    done = run_python(code, tmp_path / "ring", first_of)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    ring = MessageRing.attach(tmp_path / "ring")
    left: list[bytes] = []
    while found := ring.take_orphaned() or ring.pop_many():
        left += found.tolist()
    numbers = (1, 2, 3, 7, 8, 9) if first_of == "some orphaned" else (0, 1, 2, 6, 7, 8, 9)
    assert sorted(left) == [b"m%d" % i for i in numbers]
