"""Each `with` block settles its own permit, wherever it is left."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest

from backpressure.policies.circuit_breaker import CircuitBreaker, Permit
from backpressure.policies.circuit_breaker.blocks import held, innermost
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError, make
from tests.support.threads import until


def here(step: Callable[[], Any]) -> Any:
    return step()


def in_a_new_context(step: Callable[[], Any]) -> Any:
    return contextvars.Context().run(step)


def in_a_copied_context(step: Callable[[], Any]) -> Any:
    return contextvars.copy_context().run(step)


def in_a_thread(step: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(step())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


places = pytest.mark.parametrize(
    "place", [here, in_a_new_context, in_a_copied_context, in_a_thread]
)


def stream(
    breaker: CircuitBreaker, error: Exception | None = None
) -> Generator[Permit, None, None]:
    with breaker as permit:
        yield permit
        if error is not None:
            raise error


@places
def test_the_block_of_a_generator_settles_its_own_permit(place: Callable[..., Any]) -> None:
    breaker = make(FakeClock())
    with breaker as outer:
        steps = stream(breaker, DownError())
        inner = place(lambda: next(steps))
        with pytest.raises(DownError):
            place(lambda: next(steps))
        assert (inner._done, outer._done) == (True, False)
    assert outer._done
    metrics = breaker.metrics()
    assert (metrics.succeeded, metrics.failed, metrics.duplicates) == (1, 1, 0)


@places
def test_generators_may_leave_their_blocks_in_any_order(place: Callable[..., Any]) -> None:
    one, other = make(FakeClock()), make(FakeClock())
    steps = [stream(breaker) for breaker in (one, other, one, one)]
    permits = [place(lambda g=g: next(g)) for g in steps]
    for done in (2, 0, 1, 3):
        place(steps[done].close)
        assert permits[done]._done
        permits[done] = None
        assert not any(permit._done for permit in permits if permit is not None)
    assert one.metrics().ignored == 3


@places
def test_blocks_within_a_generators_block(place: Callable[..., Any]) -> None:
    one, other = make(FakeClock()), make(FakeClock())
    seen: list[Permit] = []

    def nested() -> Iterator[None]:
        with one as a, other as b, one as c:
            seen.extend((a, b, c))
            yield
            with one as d:
                seen.append(d)
                yield
            yield
        yield

    steps = nested()
    for expected in ([False] * 3, [False] * 4, [False] * 3 + [True], [True] * 4):
        place(lambda: next(steps))
        assert [permit._done for permit in seen] == expected


def test_the_block_of_an_asynchronous_generator_in_other_tasks() -> None:
    breaker = make(FakeClock())

    async def astream() -> AsyncGenerator[Permit, None]:
        async with breaker as a:
            with breaker as b:
                yield a
                yield b

    async def main() -> None:
        steps = astream()
        a = await asyncio.create_task(steps.__anext__())
        b = await asyncio.create_task(steps.__anext__())
        async with breaker as outer:
            with pytest.raises(StopAsyncIteration):
                await asyncio.create_task(steps.__anext__())
            assert (a._done, b._done, outer._done) == (True, True, False)

    asyncio.run(main())
    assert breaker.metrics().succeeded == 3


def test_blocks_entered_by_a_stack() -> None:
    breaker = make(FakeClock())
    with breaker as outer:
        with contextlib.ExitStack() as stack:
            a = stack.enter_context(breaker)
            steps = stream(breaker)
            b = next(steps)
            c = stack.enter_context(breaker)
            with breaker:
                pass
        assert (a._done, b._done, c._done, outer._done) == (True, False, True, False)
        steps.close()
    assert breaker.metrics().duplicates == 0


def test_stacks_that_are_left_in_another_order_settle_their_own() -> None:
    breaker = make(FakeClock())
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    a = first.enter_context(breaker)
    b = second.enter_context(breaker)
    with breaker as outer:
        first.close()
        assert (a._done, b._done, outer._done) == (True, False, False)
        with contextlib.suppress(RuntimeError), second:
            raise RuntimeError
        assert (b._done, outer._done) == (True, False)
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (2, 1)


def test_a_stack_in_a_generator_settles_its_own() -> None:
    breaker = make(FakeClock())

    def stacked() -> Generator[Permit, None, None]:
        with contextlib.ExitStack() as stack:
            yield stack.enter_context(breaker)

    steps = stacked()
    a = next(steps)
    with breaker as outer:
        steps.close()
        assert (a._done, outer._done) == (True, False)
    assert outer._done


def test_an_asynchronous_stack_settles_its_own() -> None:
    breaker = make(FakeClock())

    async def main() -> None:
        stack = contextlib.AsyncExitStack()
        a = await stack.enter_async_context(breaker)
        async with breaker as outer:
            await stack.aclose()
            assert (a._done, outer._done) == (True, False)
        assert outer._done

    asyncio.run(main())


def test_what_a_stack_hands_on_is_the_innermost() -> None:
    breaker = make(FakeClock())
    with breaker as outer:
        with contextlib.ExitStack() as stack:
            a = stack.enter_context(breaker)
            other = stack.pop_all()
        other.close()
        assert (a._done, outer._done) == (True, False)


def test_blocks_entered_by_asynchronous_stacks_of_two_tasks() -> None:
    breaker = make(FakeClock())

    async def one(go: asyncio.Event, then: asyncio.Event) -> Permit:
        async with contextlib.AsyncExitStack() as stack:
            permit = await stack.enter_async_context(breaker)
            then.set()
            await go.wait()
        assert permit._done
        return permit

    async def main() -> None:
        first, second, last = asyncio.Event(), asyncio.Event(), asyncio.Event()
        a = asyncio.create_task(one(second, first))
        await first.wait()
        b = asyncio.create_task(one(last, second))
        await a
        assert not b.done()
        assert breaker.metrics().succeeded == 1
        last.set()
        await b

    asyncio.run(main())
    assert breaker.metrics().succeeded == 2


def test_a_call_within_which_a_stack_is_left() -> None:
    breaker = make(FakeClock(), slow_call_duration=1e6)
    stack = contextlib.ExitStack()
    permit = stack.enter_context(breaker)
    breaker.call(stack.close)
    assert permit._done
    assert (breaker.metrics().succeeded, breaker.metrics().duplicates) == (2, 0)


def test_nothing_is_kept_of_a_block_that_was_left() -> None:
    from backpressure.policies.circuit_breaker import blocks

    breaker = make(FakeClock())
    before = dict(blocks._of_generators)
    for _ in stream(breaker):
        assert len(blocks._of_generators) == len(before) + 1
    assert blocks._of_generators == before


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def paused_in_a_block(breaker: CircuitBreaker, seen: list[Permit]) -> None:
    with breaker as permit:
        seen.append(permit)
        await Pause()


def test_a_coroutine_dropped_in_the_block_of_another_context_does_not_settle_that() -> None:
    breaker = make(FakeClock())
    coroutine = paused_in_a_block(breaker, [])
    in_a_new_context(lambda: coroutine.send(None))
    with breaker as outer:
        coroutine.close()
        assert not outer._done
    assert (breaker.metrics().succeeded, breaker.metrics().ignored) == (1, 0)


def test_a_coroutine_left_by_hand_settles_the_innermost() -> None:
    breaker = make(FakeClock())

    async def leave() -> None:
        breaker.__exit__(None, None, None)

    with breaker as outer:
        inner = contextlib.ExitStack().enter_context(breaker)
        asyncio.run(leave())
        assert (inner._done, outer._done) == (True, False)
    assert outer._done


def shows(breaker: CircuitBreaker, count: str, number: int) -> bool:
    return bool(getattr(breaker.metrics(), count) == number)


def test_c_code_with_no_function_beneath_enters_and_leaves() -> None:
    breaker = make(FakeClock())
    for error, outcome in ((None, "succeeded"), (DownError(), "failed")):
        context = contextvars.Context()
        run: Callable[..., object] = context.run
        for use, args, count in (
            (breaker.__enter__, (), "admitted"),
            (breaker.__exit__, (type(error), error, None), outcome),
        ):
            after = getattr(breaker.metrics(), count) + 1
            _thread.start_new_thread(run, (use, *args))
            until(partial(shows, breaker, count, after))
        assert context.run(lambda: innermost(held.get())) is None
