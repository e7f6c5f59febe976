"""Guard: the ways to put a circuit breaker around a call: `call`, `with`, decorator.

Each takes a permit, runs the caller's code with no lock held, and reports the outcome
by how that code ends. Here is no state: what a permit means is the breaker's business.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

from backpressure.base.errors import CircuitOpenError
from backpressure.policies.circuit_breaker.blocks import (
    LEFT,
    NO_FRAME,
    OF_GENERATOR,
    caller,
    enter,
    enter_call,
    find,
    held,
    innermost,
)
from backpressure.policies.circuit_breaker.fast_path import FastPath
from backpressure.policies.circuit_breaker.followed import LATER, follow, makes_context_manager
from backpressure.policies.circuit_breaker.permit import Outcome, Permit, fill
from backpressure.policies.circuit_breaker.state import State

__all__ = ["Guard"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_frame_of: Final[Callable[[int], FrameType]] = sys._getframe
# What most functions return, and is over when they do. To ask a type for what it has
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

        Where `fn` returns a coroutine, another awaitable or a future, the permit is
        taken now, and the result reported when that ends. TypeError where it returns a
        generator, or a context manager made of one: their work comes later.
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
            kind = type(result)
            plain = kind in _PLAIN or not (hasattr(kind, "__await__") or isinstance(result, LATER))
            if plain and fast_path.since <= fast_path.read() < fast_path.until:
                try:
                    fast_path.successes.pop()
                    return result
                except IndexError:
                    pass
            return follow(fill(Permit(), fast_path), result)
        return self._call(fn, *args, **kwargs)

    def __call__(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a plain or `async` function; TypeError for a generator, or what
        `contextmanager` made of one: it works after it returned.
        """
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(
                f"a generator cannot be guarded as a call; use `with breaker:` inside {fn!r}"
            )
        if makes_context_manager(fn):
            raise TypeError(
                f"a context manager cannot be guarded as a call; use `with breaker:` inside {fn!r}"
            )
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def call_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                permit = self._acquire()
                call = enter_call(permit)
                try:
                    result = await fn(*args, **kwargs)
                except BaseException as error:
                    permit.failure(error)
                    raise
                finally:
                    call._frame = LEFT
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
                kind = type(result)
                plain = kind in _PLAIN or not (
                    hasattr(kind, "__await__") or isinstance(result, LATER)
                )
                if plain and fast_path.since <= read() < fast_path.until:
                    try:
                        fast_path.successes.pop()
                        return result
                    except IndexError:
                        pass
                return follow(fill(Permit(), fast_path), result)
            return self._call(fn, *args, **kwargs)

        return call

    # A block is entered and left on the healthy path without another Python call, which
    # saves a twelfth of the whole: what `try_acquire`, `enter`, `find` and
    # `Permit.success` do there is done in line.

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
        try:
            frame = _frame_of(1)
        except ValueError:  # as in `caller`
            enter(permit, NO_FRAME)
            return permit
        if frame.f_code.co_flags & OF_GENERATOR:
            enter(permit, frame)
            return permit
        outer = held.get()
        permit._outer = outer if outer is None or outer._frame is not None else innermost(outer)
        permit._frame = frame
        held.set(permit)
        return permit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        frame: FrameType | int
        try:
            frame = _frame_of(1)
        except ValueError:
            frame = NO_FRAME
        permit = held.get()
        if permit is not None and permit._frame is frame and permit._fast_path.owner is self:
            permit._frame = None  # LEFT, without a look-up
        else:
            permit = find(self, frame)
            if permit is None:
                # Entered by hand in another context: the permit's lease runs out.
                return
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

    # Not `async`: so the caller is the frame of the block.

    def __aenter__(self) -> Coroutine[Any, Any, Permit]:
        permit = self._acquire()
        enter(permit, caller())
        return _returned(permit)

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        permit = find(self, caller())
        if permit is not None:
            if error is None:
                permit.success()
            else:
                permit.failure(error)
        return _returned(None)

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
        """`call`, with a permit that is known to calls within."""
        permit = self._acquire()
        call = enter_call(permit)
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        finally:
            call._frame = LEFT
        return follow(permit, result)


async def _returned(value: _R) -> _R:
    return value
