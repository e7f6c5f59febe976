"""What a guarded call returns and is not over yet is followed, or refused."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from backpressure.policies.circuit_breaker import CircuitBreaker
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError, half_open, make, trip

Guarded = Callable[[CircuitBreaker, Callable[[], Any]], Any]


def by_call(breaker: CircuitBreaker, fn: Callable[[], Any]) -> Any:
    return breaker.call(fn)


def by_decorator(breaker: CircuitBreaker, fn: Callable[[], Any]) -> Any:
    return breaker(fn)()


both = pytest.mark.parametrize("guarded", [by_call, by_decorator])
# With a limit for slow calls no call takes the path without a lock.
paths = pytest.mark.parametrize("settings", [{}, {"slow_call_duration": 1e6}])


def counts(breaker: CircuitBreaker) -> tuple[int, int, int]:
    metrics = breaker.metrics()
    return metrics.succeeded, metrics.failed, metrics.ignored


class Own:
    """Can be awaited, and is no coroutine."""

    name = "own"

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        if self.error is not None:
            raise self.error
        return "answer"


def a_future(error: Exception | None) -> asyncio.Future[str]:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    if error is None:
        asyncio.get_running_loop().call_soon(future.set_result, "answer")
    else:
        asyncio.get_running_loop().call_soon(future.set_exception, error)
    return future


async def a_coroutine(error: Exception | None) -> str:
    return await Own(error)


def a_task(error: Exception | None) -> asyncio.Task[str]:
    return asyncio.create_task(a_coroutine(error))


def gathered(error: Exception | None) -> Awaitable[Any]:
    return asyncio.gather(a_coroutine(None), a_coroutine(error))


@types.coroutine
def an_old_coroutine(error: Exception | None) -> Generator[Any, Any, str]:
    yield from asyncio.sleep(0).__await__()
    if error is not None:
        raise error
    return "answer"


@both
@paths
@pytest.mark.parametrize("work", [Own, a_future, a_task, gathered, a_coroutine, an_old_coroutine])
def test_the_outcome_of_an_awaitable_counts(
    guarded: Guarded, settings: dict[str, Any], work: Callable[[Exception | None], Any]
) -> None:
    breaker = make(FakeClock(), **settings)

    async def main() -> None:
        pending = guarded(breaker, lambda: work(None))
        assert counts(breaker) == (0, 0, 0)
        assert await pending in ("answer", ["answer", "answer"])
        assert counts(breaker) == (1, 0, 0)
        pending = guarded(breaker, lambda: work(DownError()))
        with pytest.raises(DownError):
            await pending
        assert counts(breaker) == (1, 1, 0)

    asyncio.run(main())


def test_a_future_stays_the_callers_own() -> None:
    breaker = make(FakeClock())

    async def main() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        assert breaker.call(lambda: future) is future
        future.cancel()
        await asyncio.sleep(0)
        assert counts(breaker) == (0, 0, 1)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(1)
        await breaker.call(lambda: done)
        assert counts(breaker) == (1, 0, 1)
        own = breaker.call(Own, None)
        assert own.name == "own"
        await own

    asyncio.run(main())


@both
@paths
def test_the_future_of_an_executor_is_followed(guarded: Guarded, settings: dict[str, Any]) -> None:
    breaker = make(FakeClock(), **settings)
    futures: list[Future[int]] = [Future() for _ in range(3)]
    for future in futures:
        assert guarded(breaker, lambda future=future: future) is future  # type: ignore[misc]
    assert counts(breaker) == (0, 0, 0)
    futures[0].set_result(1)
    futures[1].set_exception(DownError())
    futures[2].cancel()
    assert counts(breaker) == (1, 1, 1)


class Request(Coroutine[Any, Any, str]):
    """As HTTP clients have them: to be awaited, or the head of a block."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.closed = False

    def __await__(self) -> Generator[Any, Any, str]:
        return Own(self.error).__await__()

    async def __aenter__(self) -> str:
        return await Own(self.error)

    async def __aexit__(self, *error: object) -> None:
        self.closed = True

    def send(self, value: Any) -> Any:
        raise NotImplementedError

    def throw(self, *error: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def test_what_is_awaited_or_entered_is_followed_either_way() -> None:
    breaker = make(FakeClock())

    async def main() -> None:
        assert await breaker.call(Request, None) == "answer"
        assert await asyncio.create_task(breaker.call(Request, None)) == "answer"
        assert counts(breaker) == (2, 0, 0)
        request = breaker.call(Request, None)
        async with request as answer:
            assert answer == "answer"
            assert counts(breaker) == (2, 0, 0)
        assert request.closed
        assert counts(breaker) == (3, 0, 0)
        with pytest.raises(DownError):
            async with breaker.call(Request, DownError()):
                pass
        with pytest.raises(DownError):
            async with breaker.call(Request, None):
                raise DownError
        assert counts(breaker) == (3, 2, 0)

    asyncio.run(main())


def a_generator() -> Iterator[int]:
    yield 1


async def an_async_generator() -> AsyncIterator[int]:
    yield 1


later = pytest.mark.parametrize(
    "fn",
    [
        a_generator,
        an_async_generator,
        contextlib.contextmanager(a_generator),
        contextlib.asynccontextmanager(an_async_generator),
    ],
)


@later
def test_a_function_whose_work_comes_later_is_not_decorated(fn: Callable[[], Any]) -> None:
    breaker = make(FakeClock())
    for one in (fn, functools.partial(fn)) if fn in (a_generator, an_async_generator) else (fn,):
        with pytest.raises(TypeError, match="use `with breaker:` inside"):
            breaker(one)


@later
@both
@paths
def test_a_call_whose_work_comes_later_is_refused(
    guarded: Guarded, settings: dict[str, Any], fn: Callable[[], Any]
) -> None:
    breaker = make(FakeClock(), **settings)
    with pytest.raises(TypeError, match="use `with breaker:` inside"):
        guarded(breaker, lambda: fn())
    assert counts(breaker) == (0, 0, 1)


# --- calls within calls


def test_a_refusal_within_a_call_is_no_failure() -> None:
    inner, outer = make(FakeClock()), make(FakeClock())
    trip(inner)
    for _ in range(9):
        with contextlib.suppress(Exception):
            outer.call(inner.call, print)
    assert counts(outer) == (0, 0, 9)


@pytest.mark.parametrize("canary", [False, True])
@pytest.mark.parametrize("face", ["call", "with", "async with", "coroutine"])
def test_a_call_within_a_probe_is_a_part_of_it(canary: bool, face: str) -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1, min_requests=1, canary=canary)
    trip(breaker)
    clock.advance(breaker.retry_after())

    async def inner() -> str:
        return breaker.call(str, "answer")

    async def outer() -> str:
        if face == "call":
            return breaker.call(lambda: breaker.call(lambda: breaker.call(str, "answer")))
        if face == "coroutine":
            return await breaker.call(inner)
        if face == "with":
            with breaker:
                return await inner()
        async with breaker:
            return await inner()

    before = breaker.metrics()
    assert asyncio.run(outer()) == "answer"
    after = breaker.metrics()
    assert after.state.name == "CLOSED"
    assert after.admitted - before.admitted == after.succeeded - before.succeeded
    assert after.late == before.late
    assert after.rejected == before.rejected


def test_a_call_after_a_probe_is_not_a_part_of_it() -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1, min_requests=1)
    trip(breaker)
    probe = half_open(breaker, clock)
    assert breaker.try_acquire() is None
    probe.ignore()
    with breaker as permit:
        permit.ignore()
        with breaker:
            pass
    assert breaker.metrics().state.name == "CLOSED"
