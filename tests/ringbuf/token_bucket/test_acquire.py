"""Waiting for tokens: by threads and coroutines, in one line, and what becomes of a
place in it. Time is given where it matters; where threads meet, the waits take
milliseconds.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backpressure
from ringbuf import TokenBucket
from ringbuf._meters.token_wait import LOOK_SECONDS, TokenWait
from tests.support.processes import in_child
from tests.support.threads import background, run_threads, until

S = 1_000_000_000
FOREVER = 1 << 62


def bucket_at_0(rate: float, burst: int, tokens: int = 0, **more: Any) -> TokenBucket:
    return TokenBucket(rate, burst, initial_tokens=tokens, now_ns=0, **more)


def wait(bucket: TokenBucket, n: int = 1, deadline_ns: int = FOREVER) -> TokenWait:
    return TokenWait(bucket, n, deadline_ns=deadline_ns)


def steps_until(waiting: TokenWait, now_ns: int) -> Any:
    """Step and sleep on a clock of one's own; what the end was, and when (ns)."""
    while True:
        seconds = waiting.step_at(now_ns)
        if seconds <= 0:
            return seconds, now_ns
        assert seconds <= LOOK_SECONDS
        now_ns += math.ceil(seconds * S)


# ---------------------------------------------------------------- in given time


@pytest.mark.parametrize("path", [None, "bucket"])
def test_tokens_are_taken_when_they_come(path: str | None, tmp_path: Path) -> None:
    if path is not None and not hasattr(os, "fork"):
        pytest.skip("shared buckets need Linux")
    more: dict[str, Any] = {} if path is None else {"path": tmp_path / path}
    bucket = bucket_at_0(10, 5, **more)
    assert steps_until(wait(bucket, 3), 0) == (0.0, pytest.approx(0.3 * S, abs=2))
    assert bucket.tokens_at(3 * S // 10) == pytest.approx(0, abs=1e-6)
    assert steps_until(wait(bucket), 3 * S // 10) == (0.0, pytest.approx(0.4 * S, abs=2))


def test_tokens_that_are_there_need_no_sleep() -> None:
    bucket = bucket_at_0(10, 5, 5)
    waiting = wait(bucket, 5, 0)
    assert waiting.step_at(0) == 0.0
    assert waiting.step_at(0) == 0.0, "they are taken once"
    waiting.end()
    assert bucket.tokens_at(0) == 0.0


def test_at_the_deadline_nothing_is_taken() -> None:
    bucket = bucket_at_0(10, 5, 1)
    assert steps_until(wait(bucket, 5, S // 4), 0) == (-1.0, S // 4)
    assert bucket.tokens_at(S // 4) == 3.5
    assert steps_until(wait(bucket, 4, S // 4), S // 4) == (-1.0, S // 4)
    assert bucket.try_acquire_at(S // 4, 3)


def test_what_can_not_come_in_time_stands_in_nobodys_way() -> None:
    bucket = bucket_at_0(10, 5)
    late = wait(bucket, 5, S // 4)
    assert late.step_at(0) > 0
    assert steps_until(wait(bucket, 1), 0)[1] == pytest.approx(S // 10, abs=2)


def test_those_who_wait_are_served_in_their_order() -> None:
    bucket = bucket_at_0(10, 5)
    first, second = wait(bucket, 3), wait(bucket, 1)
    assert first.step_at(0) > 0
    assert second.step_at(0) > 0
    assert not bucket.try_acquire_at(2 * S // 10), "nobody overtakes them"
    assert steps_until(second, S // 10)[1] == pytest.approx(4 * S // 10, abs=2)
    assert first.step_at(4 * S // 10) == 0.0
    assert bucket.tokens_at(4 * S // 10) == pytest.approx(0, abs=1e-6)


def test_an_end_gives_the_place_back_once() -> None:
    bucket = bucket_at_0(10, 5)
    waiting = wait(bucket, 3)
    waiting.step_at(0)
    assert bucket.tokens_at(0) == -3
    waiting.end_at(S // 20)
    waiting.end_at(S // 20)
    assert bucket.tokens_at(S // 20) == 0.5


def test_what_is_given_back_late_overflows_as_in_the_bucket() -> None:
    for now, tokens in ((3, 3), (5, 5), (6, 5), (9, 5), (10**6, 5)):
        bucket = bucket_at_0(1, 5)
        waiting = wait(bucket, 3)
        waiting.step_at(0)
        assert bucket.acquire_up_to_at(now * S, 5) == max(0, min(now - 3, 5))
        waiting.end_at(now * S)
        assert bucket.tokens_at(now * S) == tokens - max(0, min(now - 3, 5))


def test_a_wait_that_is_dropped_is_given_up() -> None:
    bucket = TokenBucket(0.01, 5, initial_tokens=0)
    first, second = wait(bucket, 3), wait(bucket, 2)
    assert first.step() > 0
    assert second.step() > 0
    del first
    assert -2 <= bucket.tokens < -1
    assert second.step() > 0
    del second
    assert 0 <= bucket.tokens < 1


def test_a_rate_that_is_raised_shortens_the_wait() -> None:
    bucket = bucket_at_0(1, 5)
    waiting = wait(bucket, 5)
    waiting.step_at(0)
    bucket.set_rate_at(S, 100)
    assert steps_until(waiting, S) == (0.0, pytest.approx(1.04 * S, abs=2))
    waiting = wait(bucket, 5)
    assert waiting.step_at(S) > 0
    bucket.set_rate_at(S, math.inf)
    assert waiting.step_at(S) == 0.0


def test_a_rate_that_is_lowered_makes_it_longer_or_vain() -> None:
    bucket = bucket_at_0(100, 5)
    patient, hasty = wait(bucket, 5), wait(bucket, 1, S)
    patient.step_at(0)
    hasty.step_at(0)
    bucket.set_rate_at(0, 1)
    assert steps_until(hasty, 0) == (-1.0, S)
    assert steps_until(patient, S) == (0.0, pytest.approx(5 * S, abs=2))
    assert bucket.tokens_at(5 * S) == pytest.approx(0, abs=1e-6), "the hasty one took nothing"


def test_a_rate_of_0_is_waited_out() -> None:
    bucket = bucket_at_0(0, 5)
    waiting = wait(bucket)
    assert waiting.step_at(0) == LOOK_SECONDS
    assert waiting.step_at(S) == LOOK_SECONDS
    bucket.set_rate_at(S, 10)
    assert steps_until(waiting, S) == (0.0, pytest.approx(1.1 * S, abs=2))


def test_a_burst_that_is_lowered_below_it_ends_a_wait_without_a_place() -> None:
    bucket = bucket_at_0(0, 5)
    waiting = wait(bucket, 5)
    waiting.step_at(0)
    bucket.set_burst_at(0, 4)
    with pytest.raises(ValueError, match="burst 4"):
        waiting.step_at(0)


# ---------------------------------------------------------------- the faces


FACES: list[Callable[..., Any]] = [
    lambda bucket, *given, **named: bucket.acquire(*given, **named),
    lambda bucket, *given, **named: asyncio.run(bucket.aio.acquire(*given, **named)),
]
each_face = pytest.mark.parametrize("acquire", FACES, ids=["thread", "coroutine"])


@each_face
def test_it_is_true_when_the_tokens_are_taken(acquire: Callable[..., Any]) -> None:
    begin = time.monotonic()
    bucket = TokenBucket(1000, 5)
    assert acquire(bucket) is True
    assert acquire(bucket, 4) is True
    assert acquire(bucket, np.int64(5), np.float64(60)) is True
    # The five that it had at first, and five more at 1,000 a second.
    assert time.monotonic() - begin >= 0.0049
    assert acquire(bucket, 0) is True


@each_face
def test_it_is_false_at_the_timeout(acquire: Callable[..., Any]) -> None:
    bucket = TokenBucket(0.001, 5, initial_tokens=3)
    assert acquire(bucket, 4, 0) is False
    assert acquire(bucket, 4, 0.003) is False
    assert acquire(bucket, 4, timeout=np.float32(0.003)) is False
    assert acquire(bucket, 3, 0) is True


@each_face
def test_what_can_never_be_had_is_refused_at_once(acquire: Callable[..., Any]) -> None:
    bucket = TokenBucket(1000, 5)
    for timeout in (0, 1, None):
        with pytest.raises(ValueError, match="n is 6 and the burst 5"):
            acquire(bucket, 6, timeout)
    assert acquire(TokenBucket(math.inf, 5), 6) is True


@each_face
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("1",), TypeError),
        ((1.0,), TypeError),
        ((True,), TypeError),
        ((-1,), ValueError),
        ((1, -1), ValueError),
        ((1, math.nan), ValueError),
        ((1, "1"), ValueError),
        ((1, True), ValueError),
    ],
)
def test_what_is_no_number_is_refused(
    acquire: Callable[..., Any], given: tuple[Any, ...], error: type[Exception]
) -> None:
    bucket = TokenBucket(0, 5)
    with pytest.raises(error):
        acquire(bucket, *given)
    assert bucket.tokens == 5


def test_it_is_one_class() -> None:
    assert backpressure.TokenBucket is TokenBucket
    assert repr(TokenBucket(0, 5).aio) == "TokenBucket(rate=0.0, burst=5, tokens=5.0).aio"


# ---------------------------------------------------------------- threads and tasks


@pytest.mark.threads
def test_other_threads_go_on_meanwhile() -> None:
    bucket = TokenBucket(0, 5, initial_tokens=0)
    got: list[bool] = []
    with background(lambda: got.append(bucket.acquire(5, 60))):
        bucket.set_rate(math.inf)
        until(lambda: got == [True])


@pytest.mark.threads
def test_of_many_no_more_than_the_rate_is_granted() -> None:
    bucket = TokenBucket(20_000, 10, initial_tokens=0)
    taken: list[int] = []
    begin = time.monotonic()

    def take() -> None:
        for _ in range(25):
            assert bucket.acquire(4)
            taken.append(4)

    run_threads([take] * 4)
    assert sum(taken) == 400
    assert time.monotonic() - begin >= 390 / 20_000
    assert bucket.tokens <= 10


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.platform
def test_a_signals_handler_runs_and_what_it_raises_gives_the_place_back() -> None:
    bucket = TokenBucket(0.01, 5, initial_tokens=0)
    calls: list[float] = []

    class Enough(Exception):
        pass

    def handle(*_: object) -> None:
        calls.append(bucket.tokens)
        if len(calls) >= 2 and calls[-1] < -4:  # it waits in its place
            raise Enough

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    try:
        with pytest.raises(Enough):
            bucket.acquire(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert bucket.tokens >= 0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_a_task_that_is_cancelled_gives_its_place_back() -> None:
    async def main() -> None:
        bucket = TokenBucket(0.01, 5, initial_tokens=0)
        task = asyncio.create_task(bucket.aio.acquire(5))
        await asyncio.sleep(0)
        assert bucket.tokens < -4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bucket.tokens >= 0

    run(main())


def test_those_behind_a_task_that_is_cancelled_move_up() -> None:
    async def main() -> None:
        bucket = TokenBucket(0.01, 5, initial_tokens=4)
        first = asyncio.create_task(bucket.aio.acquire(5))
        second = asyncio.create_task(bucket.aio.acquire(4))
        await asyncio.sleep(0)
        assert bucket.tokens < -4
        first.cancel()
        assert await second
        assert 0 <= bucket.tokens < 1

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="shared buckets need Linux")
def test_a_place_in_a_file_is_not_the_forked_childs(tmp_path: Path) -> None:
    bucket = bucket_at_0(1, 5, path=tmp_path / "bucket")
    waiting = wait(bucket, 3)
    waiting.step_at(0)
    in_child(lambda: waiting.end_at(0))
    assert bucket.tokens_at(0) == -3
    waiting.end_at(0)
    assert bucket.tokens_at(0) == 0


def test_tasks_are_served_in_their_order_and_the_loop_goes_on() -> None:
    async def main() -> None:
        bucket = TokenBucket(200, 5, initial_tokens=0)
        order: list[int] = []

        async def take(number: int) -> None:
            assert await bucket.aio.acquire(2)
            order.append(number)

        tasks = [asyncio.create_task(take(number)) for number in range(5)]
        await asyncio.gather(*tasks)
        assert order == list(range(5))

    run(main())


def test_a_thread_and_a_task_wait_in_one_line() -> None:
    async def main() -> None:
        bucket = TokenBucket(1000, 5, initial_tokens=0)
        thread = threading.Thread(target=bucket.acquire, args=(5,))
        thread.start()
        assert await bucket.aio.acquire(5)
        thread.join()
        assert bucket.tokens <= 5

    run(main())
