"""Guard: the ways to put a circuit breaker around a call: `call`, `with`, decorator.

Each takes a permit, runs the caller's code with no lock held, and reports the outcome
by how that code ends. Here is no state: what a permit means is the breaker's business.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

from backpressure.base.errors import CircuitOpenError
from backpressure.policies.circuit_breaker.fast_path import FastPath
from backpressure.policies.circuit_breaker.permit import Outcome, Permit, fill, held, innermost
from backpressure.policies.circuit_breaker.state import State

__all__ = ["Guard"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What most functions return, and which cannot be awaited. To ask a type for what it has
# not costs a third of a guarded call before 3.12.
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict, set))


class Guard:
    """What a CircuitBreaker inherits; it provides the names declared first."""

    _fast_path: FastPath
    _read: Callable[[], float]
    _state: State

    def try_acquire(self) -> Permit | None:
        raise NotImplementedError

    def retry_after(self) -> float:
        raise NotImplementedError

    def _settle(self, permit: Permit, outcome: Outcome, latency: float | None) -> None:
        raise NotImplementedError

    def _repeated(self) -> None:
        raise NotImplementedError

    def call(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """`fn(*args, **kwargs)` under a permit, its result reported; CircuitOpenError
        where there is none.

        Where `fn` is an `async` function the permit is taken now, and the result
        reported when the coroutine ends.
        """
        # On the healthy path no permit need be made: the fast path does the counting,
        # and without another Python call.
        fast_path = self._fast_path
        try:
            fast_path.admissions.pop()
        except IndexError:
            pass  # the call from in here would have this as the context of its errors
        else:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                fill(Permit(), fast_path).failure(error)
                raise
            plain = type(result) in _PLAIN or not hasattr(type(result), "__await__")
            if plain and fast_path.since <= fast_path.read() < fast_path.until:
                try:
                    fast_path.successes.pop()
                    return result
                except IndexError:
                    pass
            return _finish(fill(Permit(), fast_path), result)
        return self._call(fn, *args, **kwargs)

    def __call__(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a plain or `async` function; TypeError for a generator, which works
        after it returned.
        """
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(
                f"a generator cannot be guarded as a call; use `with breaker:` inside {fn!r}"
            )
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def call_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                permit = self._acquire()
                try:
                    result = await fn(*args, **kwargs)
                except BaseException as error:
                    permit.failure(error)
                    raise
                permit.success()
                return result

            return cast(Callable[_P, _R], call_async)

        read = self._read

        @functools.wraps(fn)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            # The body of `call` once more: to call it from here would cost as much
            # again (bench/compare).
            fast_path = self._fast_path
            try:
                fast_path.admissions.pop()
            except IndexError:
                pass
            else:
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    fill(Permit(), fast_path).failure(error)
                    raise
                plain = type(result) in _PLAIN or not hasattr(type(result), "__await__")
                if plain and fast_path.since <= read() < fast_path.until:
                    try:
                        fast_path.successes.pop()
                        return result
                    except IndexError:
                        pass
                return _finish(fill(Permit(), fast_path), result)
            return self._call(fn, *args, **kwargs)

        return call

    # A block is entered and left on the healthy path without another Python call, which
    # saves a twelfth of the whole: what `try_acquire`, `innermost` and `Permit.success`
    # do there is done in line.

    def __enter__(self) -> Permit:
        fast_path = self._fast_path
        permit = None
        try:
            fast_path.admissions.pop()
        except IndexError:
            pass  # as in `try_acquire`
        else:
            permit = Permit()
            permit._answer = [None]
            permit._fast_path = fast_path
        if permit is None:
            permit = self._acquire()
        outer = held.get()
        permit._outer = outer if outer is None or not outer._left else innermost(outer)
        permit._left = False
        held.set(permit)
        return permit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        permit = held.get()
        if permit is None or permit._left or permit._fast_path.owner is not self:
            permit = innermost(permit, self)
            if permit is None:
                # Entered in another context, as test frameworks may split fixtures: the
                # permit's lease runs out.
                return
        permit._left = True
        if error is not None:
            permit.failure(error)
            return
        try:
            permit._answer.pop()
        except IndexError:
            self._repeated()
            return
        fast_path = permit._fast_path
        if fast_path.since <= fast_path.read() < fast_path.until:
            try:
                fast_path.successes.pop()
                return
            except IndexError:
                pass
        self._settle(permit, Outcome.OK, None)

    async def __aenter__(self) -> Permit:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def _acquire(self) -> Permit:
        """A permit, or CircuitOpenError."""
        permit = self.try_acquire()
        if permit is None:
            raise self._refusal()
        return permit

    def _refusal(self) -> CircuitOpenError:
        return CircuitOpenError(
            f"the circuit breaker is {self._state.name} and lets no call through",
            self.retry_after(),
        )

    def _call(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """`call`, with a permit."""
        permit = self._acquire()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        return _finish(permit, result)


def _finish(permit: Permit, result: _R) -> _R:
    """Report a call that returned; of a coroutine, when that has ended."""
    if isinstance(result, Coroutine):
        return cast(_R, _guarded(permit, result))
    permit.success()
    return result


async def _guarded(permit: Permit, work: Coroutine[Any, Any, _R]) -> _R:
    """Await `work` and report how it went."""
    try:
        result = await work
    except BaseException as error:
        permit.failure(error)
        raise
    permit.success()
    return result
