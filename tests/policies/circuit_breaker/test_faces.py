"""The faces of CircuitBreaker: call, with and async with, the decorator."""

from __future__ import annotations

import asyncio
import inspect
import sys

import pytest

from backpressure.base.errors import CircuitOpenError
from backpressure.policies.circuit_breaker import (
    State,
)
from backpressure.testing import FakeClock
from tests.support.circuit_breaker import DownError, acquire, fail, half_open, make, trip

# --- the decorator


def test_the_decorator_reports_to_the_state_it_was_admitted_by() -> None:
    clock = FakeClock()
    breaker = make(clock)

    @breaker
    def work(error: Exception | None) -> None:
        trip(breaker)
        half_open(breaker, clock).success()
        for _ in range(3):
            acquire(breaker).success()
        assert breaker.state is State.CLOSED
        if error is not None:
            raise error

    work(None)
    with pytest.raises(DownError):
        work(DownError())
    assert (breaker.metrics().late, breaker.metrics().window_calls) == (2, 0)


def test_the_decorator_sees_a_coroutine_that_a_plain_function_returns() -> None:
    breaker = make(FakeClock())

    async def get() -> int:
        await asyncio.sleep(0)
        raise DownError

    @breaker
    def start() -> object:
        return get()

    async def main() -> None:
        pending = start()
        assert breaker.metrics().window_calls == 0
        with pytest.raises(DownError):
            await pending  # type: ignore[misc]

    asyncio.run(main())
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (0, 1)


# --- guarded calls


class NotFoundError(Exception):
    pass


def test_call_reports_the_result() -> None:
    breaker = make(FakeClock(), min_requests=2)
    assert breaker.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(DownError):
        breaker.call(fail, DownError())
    assert breaker.state is State.OPEN
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(divmod, 7, 2)
    assert caught.value.retry_after == 8.0
    assert (breaker.metrics().succeeded, breaker.metrics().failed) == (1, 1)


@pytest.mark.parametrize(
    "error", [NotFoundError(), KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()]
)
def test_ignored_errors_count_neither_way_and_give_the_slot_back(error: BaseException) -> None:
    clock = FakeClock()
    breaker = make(clock, half_open_requests=1, ignored_exceptions=(NotFoundError,))
    with pytest.raises(type(error)):
        breaker.call(fail, error)
    assert breaker.metrics().window_calls == 0
    trip(breaker)
    clock.advance(8.0)
    for _ in range(3):
        with pytest.raises(type(error)), breaker:
            raise error
        assert breaker.state is State.HALF_OPEN
    assert breaker.metrics().ignored == 4


@pytest.mark.parametrize("watched", [None, 10.0])
@pytest.mark.parametrize("form", ["decorator", "call", "with"])
def test_errors_come_out_as_they_are(form: str, watched: float | None) -> None:
    """Nothing of how the breaker works shows in them: with the lock (where slow calls
    are watched) or without.
    """
    seen: list[BaseException | None] = []
    breaker = make(
        FakeClock(),
        lambda *change: seen.append(sys.exception()),
        min_requests=1,
        slow_call_duration=watched,
    )
    guarded = breaker(fail)

    def use(error: Exception) -> None:
        if form == "decorator":
            guarded(error)
        elif form == "call":
            breaker.call(fail, error)
        else:
            with breaker:
                fail(error)

    error = DownError()
    with pytest.raises(DownError) as caught:
        use(error)
    assert caught.value is error
    assert error.__context__ is None
    assert seen == [error]
    with pytest.raises(CircuitOpenError) as refused:
        use(error)
    assert refused.value.__context__ is None
    breaker.reset()
    assert seen == [error, None]


def test_a_change_found_by_an_acquire_is_told_outside_any_handler() -> None:
    clock = FakeClock()
    seen: list[BaseException | None] = []
    breaker = make(clock, lambda *change: seen.append(sys.exception()))
    trip(breaker)
    half_open(breaker, clock)
    assert seen == [None, None]


def test_the_decorator_guards_plain_functions_and_methods() -> None:
    breaker = make(FakeClock(), min_requests=2)

    class Client:
        @breaker
        def get(self, key: str, *, error: Exception | None = None) -> str:
            """Get."""
            if error is not None:
                raise error
            return key

    client = Client()
    assert client.get("a") == "a"
    assert (Client.get.__name__, Client.get.__doc__) == ("get", "Get.")
    with pytest.raises(DownError):
        client.get("a", error=DownError())
    with pytest.raises(CircuitOpenError):
        client.get("a")


def test_the_decorator_guards_async_functions() -> None:
    breaker = make(FakeClock(), min_requests=2)

    @breaker
    async def get(error: BaseException | None = None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 1

    async def main() -> None:
        assert await get() == 1
        with pytest.raises(asyncio.CancelledError):
            await get(asyncio.CancelledError())
        with pytest.raises(TypeError):
            # Never started, yet it must not keep its permit.
            await get(None, 2)  # type: ignore[call-arg]
        assert breaker.state is State.OPEN
        with pytest.raises(CircuitOpenError):
            await get()

    assert inspect.iscoroutinefunction(get)
    asyncio.run(main())
    metrics = breaker.metrics()
    assert (metrics.succeeded, metrics.failed, metrics.ignored) == (1, 1, 1)


def test_call_waits_for_the_end_of_a_coroutine() -> None:
    breaker = make(FakeClock(), min_requests=2)

    async def get(error: Exception | None = None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 1

    async def main() -> None:
        good, bad = breaker.call(get), breaker.call(get, DownError())
        assert (breaker.metrics().admitted, breaker.metrics().window_calls) == (2, 0)
        results = await asyncio.gather(good, bad, return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], DownError)

    asyncio.run(main())
    assert breaker.state is State.OPEN


def test_generators_can_not_be_decorated() -> None:
    breaker = make(FakeClock())

    def plain() -> object:
        yield 1

    async def asynchronous() -> object:
        yield 1

    for function in (plain, asynchronous):
        with pytest.raises(TypeError, match="generator"):
            breaker(function)


def test_with_blocks_nest() -> None:
    outer, inner = make(FakeClock()), make(FakeClock())
    with outer as a, inner as b, outer as c:
        assert len({a, b, c}) == 3
        with pytest.raises(DownError), inner:
            raise DownError
        assert inner.metrics().failed == 1
        assert outer.metrics().succeeded == 0
    assert (outer.metrics().succeeded, outer.metrics().failed) == (2, 0)
    assert (inner.metrics().succeeded, inner.metrics().failed) == (1, 1)
    assert (outer.metrics().duplicates, inner.metrics().duplicates) == (0, 0)
