"""A TokenBucket in a file: making and attaching, several processes, and what is left by
those that are killed.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ringbuf import RingBuffer, SharedFileError, TokenBucket
from ringbuf._meters import bucket_file, token_bucket
from tests.torture.step_kill import is_allowed, run_and_kill

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

SECOND = 1_000_000_000
PAGE = 4096
#: Where the words of the state lie in the file (see BucketState).
SETTER, BOOT, SHIFT = PAGE + 72, PAGE + 80, PAGE + 128 + 64 + 40


def in_child(work: Callable[[], object]) -> int:
    """Run it in a forked child; its process number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_two_buckets_of_one_file_are_one_bucket(tmp_path: Path) -> None:
    bucket = TokenBucket(10, 5, now_ns=0, path=tmp_path / "bucket")
    other = TokenBucket.attach(tmp_path / "bucket")
    again = TokenBucket(10, 5, path=tmp_path / "bucket")
    assert bucket.try_acquire_at(0, 2)
    assert other.acquire_up_to_at(0, 2) == 2
    assert not again.try_acquire_at(0, 2)
    reservation = again.reserve_at(0, 3)
    assert (reservation.delay, bucket.tokens_at(0)) == (0.2, -2.0)
    assert reservation.cancel_at(0) == 3
    other.set_rate_at(0, 20)
    other.set_burst_at(0, 7)
    assert (bucket.rate, bucket.burst) == (20.0, 7)
    assert bucket.acquire_up_to_at(SECOND, 100) == 7
    assert (bucket.path, TokenBucket(1, 1).path) == (str(tmp_path / "bucket"), None)
    del bucket, again
    assert TokenBucket.attach(tmp_path / "bucket").acquire_up_to_at(SECOND + SECOND // 10, 100) == 2


def test_another_law_and_other_files_are_refused(tmp_path: Path) -> None:
    TokenBucket(10, 5, path=tmp_path / "bucket")
    RingBuffer(4, "i8", path=tmp_path / "ring")
    for rate, burst in ((11, 5), (10, 6)):
        with pytest.raises(SharedFileError, match=r"rate 10\.0 and burst 5, not .*set_rate\(\)"):
            TokenBucket(rate, burst, path=tmp_path / "bucket")
    with pytest.raises(SharedFileError, match="holds a RingBuffer, not a TokenBucket"):
        TokenBucket.attach(tmp_path / "ring")
    with pytest.raises(FileNotFoundError):
        TokenBucket.attach(tmp_path / "none")
    whole = bytearray((tmp_path / "bucket").read_bytes())
    whole[SHIFT] = 200
    (tmp_path / "bucket").write_bytes(whole)
    with pytest.raises(SharedFileError, match="damaged: no bucket has such a law"):
        TokenBucket.attach(tmp_path / "bucket")


def test_processes_together_get_what_is_there(tmp_path: Path) -> None:
    bucket = TokenBucket(0, 200_000, path=tmp_path / "bucket")

    def work() -> None:
        mine = TokenBucket.attach(tmp_path / "bucket")
        granted = 0
        while part := mine.acquire_up_to(3):
            granted += part
            if granted % 1000 == 0:
                mine.set_rate(0)
        (tmp_path / str(os.getpid())).write_text(str(granted))

    children = [in_child(work) for _ in range(4)]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    assert sum(int((tmp_path / str(pid)).read_text()) for pid in children) == 200_000
    assert bucket.tokens == 0


def test_a_forked_child_has_a_participant_slot_of_its_own(tmp_path: Path) -> None:
    bucket = TokenBucket(10, 5, now_ns=0, path=tmp_path / "bucket")

    def work() -> None:
        bucket.set_rate_at(0, 30)
        assert bucket.try_acquire_at(0, 5)

    assert os.waitpid(in_child(work), 0)[1] == 0
    assert (bucket.rate, bucket.tokens_at(0)) == (30.0, 0.0)
    bucket.set_rate_at(0, 40)


def test_after_a_restart_of_the_machine_the_law_begins_anew(tmp_path: Path) -> None:
    """The clock has gone back: tokens do not stay away until it has caught up, and none
    is granted twice.
    """
    for spent, rate, left in ((2, 0.1, 3), (5, 0.1, 0), (9, 0.1, 1), (2, 0, 3)):
        path = tmp_path / f"bucket-{spent}-{rate}"
        long_ago = TokenBucket(rate, 5, now_ns=2**62, path=path)
        if spent > 5:
            assert long_ago.try_acquire_at(2**62, 5)
            # Of a new law, from a full bucket.
            assert long_ago.try_acquire_at(2**62 + 100 * SECOND, spent - 5)
        else:
            assert long_ago.try_acquire_at(2**62, spent)
        del long_ago
        whole = bytearray(path.read_bytes())
        whole[BOOT : BOOT + 16] = bytes(16)
        # A change was under way.
        whole[SETTER : SETTER + 8] = struct.pack("<Q", 77 << 16 | 1)
        path.write_bytes(whole)
        bucket = TokenBucket.attach(path)
        now = 2**61  # after the present, before the old law began
        assert left <= bucket.tokens < left + 1
        assert bucket.tokens_at(now) == (5.0 if rate else left)
        bucket.set_rate(20)


@pytest.fixture(scope="module")
def steps_are_allowed() -> None:
    if not is_allowed():
        pytest.skip("ptrace is not allowed here")


@pytest.mark.usefixtures("steps_are_allowed")
@pytest.mark.parametrize("change", [False, True])
def test_one_killed_at_any_instruction(tmp_path: Path, change: bool, in_full: bool) -> None:
    """It has done it, or it has not; and the others go on."""
    path = tmp_path / "bucket"

    def setup() -> Callable[[], object]:
        warm = TokenBucket(10, 40, now_ns=0)
        mine = TokenBucket.attach(path)
        mine.acquire_up_to_at(0, 0)  # takes the participant slot
        if change:
            warm.set_rate_at(SECOND, 20)
            return lambda: mine.set_rate_at(SECOND, 20)
        warm.try_acquire_at(SECOND, 7)
        return lambda: mine.try_acquire_at(SECOND, 7)

    seen: list[tuple[float, float]] = []
    locked = 0
    steps, within = 0, True
    while within:
        path.unlink(missing_ok=True)
        # More than full, so that either has something to settle first.
        bucket = TokenBucket(10, 40, initial_tokens=35, now_ns=0, path=path)
        within = run_and_kill(setup, steps)
        locked += struct.unpack_from("<Q", path.read_bytes(), SETTER)[0] != 0
        now = (bucket.rate, bucket.tokens_at(SECOND))
        if now not in seen:
            seen.append(now)
        bucket.set_burst_at(SECOND, 41)  # hangs if the lock is never opened
        assert bucket.burst == 41
        assert bucket.acquire_up_to_at(SECOND, 100) == now[1]
        assert bucket.acquire_up_to_at(11 * SECOND, 100) == 41
        steps += 17 if in_full else 171
    assert seen == ([(10.0, 40.0), (20.0, 40.0)] if change else [(10.0, 40.0), (10.0, 33.0)])
    assert locked > 0, "no kill met the lock: this test tests nothing"


def test_kills_at_random_leave_a_bucket_that_works(tmp_path: Path) -> None:
    """Each notes what it got; what is not noted is what one call can take, once for
    each that was killed.
    """
    path = tmp_path / "bucket"
    bucket = TokenBucket(0, 10**9, path=path)

    def work() -> None:
        mine = TokenBucket.attach(path)
        with open(tmp_path / f"{os.getpid()}.notes", "wb", buffering=0) as notes:
            while True:
                mine.acquire_up_to(7)
                notes.write(b".")
                mine.set_burst(10**9)

    children = []
    for _ in range(20):
        children.append(in_child(work))
        while (
            not (tmp_path / f"{children[-1]}.notes").exists()
            or not (tmp_path / f"{children[-1]}.notes").stat().st_size
        ):
            pass
        os.kill(children[-1], signal.SIGKILL)
        os.waitpid(children[-1], 0)
        bucket.set_rate(0)
    noted = 7 * sum((tmp_path / f"{pid}.notes").stat().st_size for pid in children)
    assert noted <= 10**9 - bucket.tokens <= noted + 7 * len(children)


# ---------------------------------------------------------------- signals


def test_a_signals_handler_that_uses_the_bucket_does_not_wait_for_its_own_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the first acquire it comes; an error in it leaves no lock behind."""
    monkeypatch.setattr(bucket_file, "TIDYING_SECONDS", 0.05)
    path = tmp_path / "bucket"
    keep = TokenBucket(0, 10**6, path=path)
    taken: list[bool] = []
    seen = 0

    class Stopped(Exception):
        pass

    def handler(*_: object) -> None:
        taken.append(bucket.try_acquire())
        if raises:
            raise Stopped

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        """Let the signal come at event number `at`, of lines, calls and returns of
        Python code.
        """
        nonlocal seen
        seen += 1
        if seen == at:
            signal.raise_signal(signal.SIGUSR1)
        return trace

    bucket: Any = None
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for answer in (False, True):
            raises, at = answer, 0
            while True:
                bucket = TokenBucket.attach(path)
                at += 1
                seen = 0
                tracing = sys.gettrace()
                sys.settrace(trace)
                try:
                    taken.append(bucket.try_acquire())
                except Stopped:
                    pass
                finally:
                    sys.settrace(tracing)
                if seen < at:
                    break
                taken.append(TokenBucket.attach(path).try_acquire())
            assert at > 5, "the signal came nowhere: this test tests nothing"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert keep.tokens == 10**6 - sum(taken)


def test_an_interrupted_first_acquire_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_full: bool
) -> None:
    monkeypatch.setattr(bucket_file, "TIDYING_SECONDS", 0.05)
    path = tmp_path / "bucket"
    keep = TokenBucket(0, 10**6, path=path)

    class Stopped(Exception):
        pass

    armed: list[bool] = []

    def handler(*_: object) -> None:
        if armed:
            raise Stopped

    rng = random.Random(3)
    stopped = 0
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(20_000 if in_full else 2_000):
            bucket = TokenBucket.attach(path)
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 60e-6))
                try:
                    bucket.try_acquire()
                finally:
                    armed.clear()  # a signal may still come
            except Stopped:
                stopped += 1
            armed.clear()
            TokenBucket.attach(path).try_acquire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped > 0
    assert keep.tokens <= 10**6


# ---------------------------------------------------------------- stopped and damaged


def test_a_change_does_not_wait_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bucket"
    bucket, other = TokenBucket(10, 5, now_ns=0, path=path), TokenBucket.attach(path)
    assert other.try_acquire_at(0)
    assert bucket.try_acquire_at(0)
    # As if the other one, which has the first slot, had been stopped in the midst of a
    # change.
    with path.open("r+b") as file:
        file.seek(SETTER)
        file.write(struct.pack("<Q", 77 << 16 | 1))
    monkeypatch.setattr(token_bucket, "CHANGE_SECONDS", 0.05)
    turns = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with pytest.raises(TimeoutError, match="Nothing has been changed"):
            bucket.set_rate_at(0, 30)
    finally:
        stop.set()
        thread.join()
    assert turns > 10, "it holds the GIL while it waits"
    assert (bucket.rate, bucket.try_acquire_at(0, 2)) == (10.0, True)
    with pytest.raises(TimeoutError, match="Nothing has been changed"):
        bucket.set_burst_at(0, 3)
    # With its process gone, its lock is free.
    del other
    bucket.set_rate_at(0, 30)
    assert bucket.rate == 30.0


def test_a_damaged_bucket_is_refused_or_has_numbers(tmp_path: Path, in_full: bool) -> None:
    """Any bytes behind a sound header: no hang, no crash; and what it grants it says as
    an int within what was asked.
    """
    path = tmp_path / "bucket"
    sound = []
    for rate, burst in ((10, 5), (1e6, 5_000_000), (0, 7), (float("inf"), 3), (1e12, 2**62 - 1)):
        path.unlink(missing_ok=True)
        TokenBucket(rate, burst, path=path).try_acquire(3)
        sound.append(path.read_bytes())
    rng = random.Random(11)
    odd = [
        0,
        1,
        8,
        9,
        105,
        106,
        2**31,
        2**53 - 1,
        2**53,
        2**62,
        2**62 + 1,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ]
    refused = accepted = 0
    for number in range(30_000 if in_full else 1_500):
        content = bytearray(rng.choice(sound))
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = PAGE + rng.randrange(32) * 8
            value = rng.choice(
                (
                    rng.choice(odd),
                    rng.getrandbits(64),
                    struct.unpack_from("<Q", content, at)[0] ^ 1 << rng.randrange(64),
                )
            )
            struct.pack_into("<Q", content, at, value)
        path.write_bytes(content)
        try:
            bucket = TokenBucket.attach(path)
        except SharedFileError:
            refused += 1
            continue
        accepted += 1
        for now in (-(2**63), 0, 2**40, 2**63 - 1):
            assert bucket.try_acquire_at(now, 3) in (True, False), number
            assert 0 <= bucket.acquire_up_to_at(now, 10) <= 10, number
            assert bucket.retry_after_at(now, 5) >= 0, number
            assert bucket.tokens_at(now) <= (
                bucket.rate if bucket.rate == float("inf") else float(bucket.burst)
            ), number
            reservation = bucket.reserve_at(now, 2)
            assert reservation.delay >= 0, number
            assert 0 <= reservation.cancel_at(now) <= 2, number
            assert 0 <= bucket.give_back_at(now, 2) <= 2, number
        assert 0 <= bucket.rate <= 1e12 or bucket.rate == float("inf")
        assert 0 <= bucket.burst < 2**62
        assert bucket.try_acquire() in (True, False)
        bucket.set_rate(5)
        bucket.set_burst(3)
        assert (bucket.rate, bucket.burst) == (5.0, 3)
        assert bucket.tokens <= 3
    assert refused > 100
    assert accepted > 100
