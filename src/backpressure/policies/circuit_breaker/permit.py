"""What a caller holds between asking and answering."""

from __future__ import annotations

from enum import Enum
from types import FrameType
from typing import TypeVar

from backpressure.policies.circuit_breaker.fast_path import FastPath

__all__ = ["Canary", "InnerPermit", "Outcome", "Permit", "Probe", "fill"]


P = TypeVar("P", bound="Permit")


class Outcome(Enum):
    OK = "ok"
    FAILED = "failed"
    IGNORED = "ignored"


class Permit:
    """Leave for one call. Report its result once, from any thread; a second report does
    nothing.

    `generation` is that of the state which gave it.
    """

    __slots__ = ("_answer", "_fast_path", "_frame", "_outer", "_since")

    # There is no `__init__`: it would add a sixth to what a permit costs from end to
    # end. The breaker fills these in.
    #: Of the generation that gave it: a success may be counted there without the lock.
    _fast_path: FastPath
    #: The report that takes the None out counts; `pop` is atomic with and without the
    #: GIL.
    _answer: list[None]
    _since: float  # when it was given; only where slow calls are watched
    # Of a block or call: the one around it, and the frame of the block; see blocks.py.
    _outer: Permit | None
    _frame: FrameType | int | None

    _number: int | None = None

    def success(self, latency: float | None = None) -> None:
        """The call succeeded. `latency` is in seconds; None takes the time since the
        permit was given.
        """
        try:
            self._answer.pop()
        except IndexError:
            self._fast_path.owner._repeated()
            return
        fast_path = self._fast_path
        if fast_path.since <= fast_path.read() < fast_path.until:
            try:
                fast_path.successes.pop()
                return
            except IndexError:
                pass
        fast_path.owner._settle(self, Outcome.OK, latency)

    def failure(self, error: BaseException | None = None) -> None:
        """The call failed; or `ignore()`, where `error` says nothing about the callee:
        see `CircuitBreakerConfig.ignored_exceptions`.
        """
        ignored = error is not None and self._fast_path.owner.config.ignores(error)
        self._report(Outcome.IGNORED if ignored else Outcome.FAILED)

    def ignore(self) -> None:
        """The call says nothing about the callee, or was never made: gives the slot
        back.
        """
        self._report(Outcome.IGNORED)

    def _report(self, outcome: Outcome) -> None:
        try:
            self._answer.pop()
        except IndexError:
            self._fast_path.owner._repeated()
            return
        self._fast_path.owner._settle(self, outcome, None)

    @property
    def generation(self) -> int:
        return self._fast_path.generation

    @property
    def _done(self) -> bool:
        return not self._answer

    def __repr__(self) -> str:
        return f"<Permit generation={self.generation} {'settled' if self._done else 'out'}>"


def fill(permit: P, fast_path: FastPath, since: float = 0.0) -> P:
    """What the constructor of a permit would do."""
    permit._answer = [None]
    permit._fast_path = fast_path
    permit._since = since
    return permit


class Probe(Permit):
    """A permit that holds a slot of HALF_OPEN; the slot is free again when the permit
    is dropped.
    """

    __slots__ = ("_number",)

    _number: int

    def __del__(self) -> None:
        # No lock may be taken here: a collection can run in the middle of a method that
        # holds it.
        self._fast_path.owner._probes.dropped.append(self._number)


class Canary(Permit):
    """A permit that OPEN gave. The breaker keeps no more than a weak reference to it:
    it is out until it is answered or dropped.
    """

    __slots__ = ("__weakref__", "_due")

    _due: float  # the end of the open time when it went


class InnerPermit(Permit):
    """Of a call within a call that the same breaker has admitted as a probe or canary.

    It is a part of that call: its result feeds the metrics, and the outer one decides.
    """

    __slots__ = ()
