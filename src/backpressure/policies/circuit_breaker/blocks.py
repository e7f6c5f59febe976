"""Which permit belongs to which `with` block, and which calls are under way here.

A block is known by the frame of the function that contains it: that is the same when
the block is entered and when it is left, whichever thread, task or context runs the
function by then.

- The block of a generator is noted under its frame, as the steps of a generator may run
  in different threads and contexts.
- Any other block, and any call that took the breaker's lock, is in the chain of its
  context: the innermost comes first. What is left is marked, not taken off, since the
  second change of the variable would cost more than all the rest; so the last one
  stays until the next comes.
- A block that an ExitStack enters belongs to that stack, in whatever order stacks are
  left.
- A block that is entered and left by hand, or that a stack leaves which did not enter
  it (`pop_all`, or a generator with a stack that is stepped in another context), is
  left from another frame than it was entered from: it is the innermost of its breaker
  in the context. A coroutine may also leave a block of its own in another context than
  it entered it in, as when it is dropped: it does not take one that a function beneath
  it is still in.
- C code that calls with no Python function beneath has no frame: it leaves the
  innermost that was entered so.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from contextvars import ContextVar
from types import FrameType
from typing import Final

from backpressure.policies.circuit_breaker.permit import Permit

__all__ = [
    *("CALL", "LEFT", "NO_FRAME", "OF_GENERATOR"),
    *("caller", "enter", "enter_call", "find", "held", "innermost"),
]

#: In place of a frame: the block or the call is over; a call, which has no block; a
#: block of C code.
LEFT: Final = None
CALL: Final = -1
NO_FRAME: Final = -2
#: Flags of the code of a generator.
OF_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

# One variable for all breakers: a context keeps every variable that was ever set in it,
# so one for each breaker would leak.
held: Final[ContextVar[Permit | None]] = ContextVar("backpressure_permits", default=None)

# The innermost permit of each generator that is within a block, by the frame's id.
# Each operation on it is atomic, and a frame is run by one thread at a time.
_of_generators: Final[dict[int, Permit]] = {}


def innermost(permit: Permit | None) -> Permit | None:
    """The first, from this one outwards, that is not over."""
    while permit is not None and permit._frame is LEFT:
        permit = permit._outer
    return permit


def caller() -> FrameType | int:
    """The frame of the function that called the caller of this one, or NO_FRAME."""
    try:
        return sys._getframe(2)
    except ValueError:
        return NO_FRAME


def enter(permit: Permit, frame: FrameType | int) -> None:
    """The block of `frame` begins, under that permit."""
    if not isinstance(frame, int) and frame.f_code.co_flags & OF_GENERATOR:
        # Not the frame itself: an asynchronous generator that is dropped may never
        # leave its block.
        key = permit._frame = id(frame)
        permit._outer = innermost(_of_generators.get(key))
        _of_generators[key] = permit
    else:
        permit._frame = frame
        permit._outer = innermost(held.get())
        held.set(permit)


class Call(Permit):
    """A call under way, in place of its permit, which may be in two contexts: that of
    the call, and that in which what it returned is awaited.
    """

    __slots__ = ("_number",)

    _number: int | None


def enter_call(permit: Permit) -> Call:
    """A call begins in this context; at its end `_frame` is to be LEFT."""
    call = Call()
    call._answer, call._fast_path = permit._answer, permit._fast_path
    call._number = permit._number
    call._outer = innermost(held.get())
    call._frame = CALL
    held.set(call)
    return call


def find(owner: object, frame: FrameType | int) -> Permit | None:
    """The permit of the block of `owner` that `frame` leaves; it is marked as left."""
    key = id(frame)
    first = _of_generators.get(key)
    permit = _of_frame(first, owner, key)
    if permit is not None:
        permit._frame = LEFT
        rest = innermost(first)
        if rest is None:
            del _of_generators[key]
        else:
            _of_generators[key] = rest
        return permit
    first = held.get()
    permit = (
        _of_frame(first, owner, frame)
        or _of_stack(first, owner, frame)
        or _by_hand(first, owner, frame)
    )
    if permit is not None:
        permit._frame = LEFT
    return permit


def _of_frame(permit: Permit | None, owner: object, key: FrameType | int) -> Permit | None:
    while permit is not None and not (permit._frame == key and permit._fast_path.owner is owner):
        permit = permit._outer
    return permit


def _of_stack(permit: Permit | None, owner: object, frame: FrameType | int) -> Permit | None:
    stack = _stack_of(frame)
    if stack is None:
        return None
    while permit is not None and not (
        permit._fast_path.owner is owner and _stack_of(permit._frame) is stack
    ):
        permit = permit._outer
    return permit


def _stack_of(frame: FrameType | int | None) -> object | None:
    """The ExitStack of which this is a method; None: of none."""
    if frame is None or isinstance(frame, int) or frame.f_globals is not vars(contextlib):
        return None
    stack = frame.f_locals.get("self")
    return stack if isinstance(stack, contextlib.ExitStack | contextlib.AsyncExitStack) else None


def _by_hand(permit: Permit | None, owner: object, frame: FrameType | int) -> Permit | None:
    beneath: set[FrameType | int | None] = {LEFT, CALL}
    if not isinstance(frame, int) and frame.f_code.co_flags & inspect.CO_COROUTINE:
        function: FrameType | None = frame
        while function is not None:
            beneath.add(function)
            function = function.f_back
    while permit is not None and (permit._frame in beneath or permit._fast_path.owner is not owner):
        permit = permit._outer
    return permit
