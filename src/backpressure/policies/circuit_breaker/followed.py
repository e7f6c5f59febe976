"""What a guarded call returns and is not over yet: followed to its end, or refused.

A coroutine or another awaitable is awaited through a wrapper; to a future, of asyncio
or of an executor, a callback is added, and it stays the caller's. The call ends when
these do.

What a generator or a context manager made of one does comes later, piece by piece, and
none of the pieces need ever be asked for: where a call returns one, it is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import _GeneratorContextManagerBase, asynccontextmanager, contextmanager
from inspect import CO_ITERABLE_COROUTINE
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, Final, TypeVar, cast

from backpressure.policies.circuit_breaker.blocks import LEFT, enter_call
from backpressure.policies.circuit_breaker.permit import Permit

__all__ = ["LATER", "follow", "makes_context_manager"]

_R = TypeVar("_R")

#: What is not over yet, and has no `__await__`. No abstract class: asking one is slow.
LATER: Final = (GeneratorType, AsyncGeneratorType, Future, _GeneratorContextManagerBase)
_REFUSED: Final = (GeneratorType, AsyncGeneratorType, _GeneratorContextManagerBase)

# The code that each function decorated with them runs.
_MAKERS: Final = tuple(
    maker(lambda: None).__code__
    for maker in cast("tuple[Any, ...]", (contextmanager, asynccontextmanager))
)


def makes_context_manager(fn: Callable[..., Any]) -> bool:
    """Whether it was made by `contextmanager` or `asynccontextmanager`."""
    return getattr(fn, "__code__", None) in _MAKERS


def follow(permit: Permit, result: _R) -> _R:
    """What the caller gets in place of `result`; it reports to `permit` at its end.

    TypeError for what cannot be followed: then the permit is given back.
    """
    result_: Any = result
    if hasattr(type(result), "add_done_callback"):
        if result_.done():  # asyncio would make the call only after the caller went on
            _report(permit, result_)
        else:
            result_.add_done_callback(functools.partial(_report, permit))
        return result
    if hasattr(type(result), "__aenter__") and hasattr(type(result), "__await__"):
        return cast(_R, _AwaitableBlock(permit, result_))
    if isinstance(result, Coroutine):
        return cast(_R, _awaited(permit, result))
    if hasattr(type(result), "__await__"):
        return cast(_R, _Awaitable(permit, result_))
    if isinstance(result, GeneratorType) and result.gi_code.co_flags & CO_ITERABLE_COROUTINE:
        return cast(_R, _awaited(permit, result_))
    if isinstance(result, _REFUSED):
        permit.ignore()
        raise TypeError(
            f"the call returned {result!r}, whose work comes later, where the breaker "
            "does not see it; use `with breaker:` inside, or around its use"
        )
    permit.success()
    return result


def _report(permit: Permit, future: Any) -> None:
    if future.cancelled():
        permit.ignore()
        return
    error = future.exception()
    if error is None:
        permit.success()
    else:
        permit.failure(error)


async def _awaited(permit: Permit, work: Awaitable[_R]) -> _R:
    """Await `work` and report how it went."""
    call = enter_call(permit)
    try:
        result = await work
    except BaseException as error:
        permit.failure(error)
        raise
    finally:
        call._frame = LEFT
    permit.success()
    return result


class _Awaitable:
    """Stands for an awaitable that is no coroutine, with all that it has."""

    def __init__(self, permit: Permit, work: Any) -> None:
        self._permit = permit
        self._work = work

    def __await__(self) -> Generator[Any, Any, Any]:
        return _awaited(self._permit, self._work).__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def __repr__(self) -> str:
        return repr(self._work)


class _AwaitableBlock(_Awaitable, Coroutine[Any, Any, Any]):
    """Stands for what can be awaited, or be the head of an `async with` block; the call
    lasts as long as the block.
    """

    _running: CoroutineType[Any, Any, Any] | None = None

    async def __aenter__(self) -> Any:
        try:
            return await self._work.__aenter__()
        except BaseException as error:
            self._permit.failure(error)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        try:
            handled = await self._work.__aexit__(kind, error, trace)
        except BaseException as raised:
            self._permit.failure(raised)
            raise
        if error is None:
            self._permit.success()
        else:
            self._permit.failure(error)
        return handled

    # As a coroutine, for `asyncio.create_task`.

    def _run(self) -> CoroutineType[Any, Any, Any]:
        if self._running is None:
            self._running = cast("CoroutineType[Any, Any, Any]", _awaited(self._permit, self._work))
        return self._running

    def send(self, value: Any) -> Any:
        return self._run().send(value)

    def throw(self, *error: Any) -> Any:
        return self._run().throw(*error)

    def close(self) -> None:
        self._run().close()
