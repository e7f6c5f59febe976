"""What the end of a call to a sink means, for the batch and for the sink.

The first line that fits:

    returned                         taken       acked
    ignored by the circuit breaker   ignored     again in place, as if never sent
    SinkGone                         gone        kept; the delivery ends
    SinkUnavailable, NotNow          unavailable again after its time, or the backoff
    BatchTooLarge                    too large   halved at once, the size is learnt
    BatchRejected                    rejected    halved at once
    PartialFailure                   partial     settled event by event
    an exception with an HTTP status 413: too large; 400, 406, 409 to 412, 414 to 417,
                                     422, 431: rejected; else unavailable, after the
                                     time that its Retry-After says
    OSError, TimeoutError            unavailable
    any other exception, a text      a fault     again after the backoff

`unavailable` and a `fault` are failures of the sink. What rejects a batch, finds it too
large or takes a part of it has answered, which is a success of the sink. A group of
exceptions is judged by its leaves that are not ignored, by the one of them that says
the worst of the sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from backpressure.base.errors import (
    BatchRejected,
    BatchTooLarge,
    NotNow,
    PartialFailure,
    SinkGone,
    SinkUnavailable,
)

__all__ = [
    "Meaning",
    "Outcome",
    "http_status",
    "outcome_of",
    "retry_after_of",
    "retry_after_seconds",
]

_REJECTED: Final = frozenset((400, 406, *range(409, 413), *range(414, 418), 422, 431))
_TOO_LARGE: Final = 413
#: A longer wait is not asked for in earnest (seconds).
_LONGEST_RETRY_AFTER: Final = 3600.0


class Meaning(Enum):
    """In the order in which a group of exceptions is judged."""

    GONE = "gone"
    UNAVAILABLE = "unavailable"
    FAULT = "fault"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    PARTIAL = "partial"
    IGNORED = "ignored"
    TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt to deliver a batch."""

    meaning: Meaning
    #: What the sink said; None where it returned.
    error: BaseException | str | None = None
    #: Seconds before the next attempt, where the sink named them.
    retry_after: float | None = None

    @property
    def fails(self) -> bool:
        """Whether it is a failure of the sink."""
        return self.meaning is Meaning.UNAVAILABLE or self.meaning is Meaning.FAULT


def outcome_of(
    error: BaseException | str | None, ignores: Callable[[BaseException], bool]
) -> Outcome:
    """What `error`, out of a call to a sink or given to `nack`, means.

    ignores: whether an exception says nothing about the sink.
    """
    if not isinstance(error, BaseException):
        return Outcome(Meaning.FAULT, error)
    if ignores(error):
        return Outcome(Meaning.IGNORED, error)
    if isinstance(error, BaseExceptionGroup):
        leaves = [outcome_of(one, ignores) for one in error.exceptions]
        order = list(Meaning)
        worst = min(leaves, key=lambda leaf: order.index(leaf.meaning))
        if worst.meaning is Meaning.PARTIAL and len(leaves) > 1:
            # Two lists of events, which do not say what became of the others.
            return Outcome(Meaning.FAULT, error)
        inner = worst.error if worst.meaning is Meaning.PARTIAL else error
        return Outcome(worst.meaning, inner, worst.retry_after)
    if isinstance(error, SinkGone):
        return Outcome(Meaning.GONE, error)
    if isinstance(error, SinkUnavailable):
        return Outcome(Meaning.UNAVAILABLE, error, _bounded(error.retry_after))
    if isinstance(error, NotNow):
        return Outcome(Meaning.UNAVAILABLE, error, _bounded(error.retry_after or None))
    if isinstance(error, BatchTooLarge):
        return Outcome(Meaning.TOO_LARGE, error)
    if isinstance(error, BatchRejected):
        return Outcome(Meaning.REJECTED, error)
    if isinstance(error, PartialFailure):
        return Outcome(Meaning.PARTIAL, error)
    status = http_status(error)
    if status is not None:
        if status == _TOO_LARGE:
            return Outcome(Meaning.TOO_LARGE, error)
        if status in _REJECTED:
            return Outcome(Meaning.REJECTED, error)
        return Outcome(Meaning.UNAVAILABLE, error, retry_after_of(error))
    if isinstance(error, OSError):  # TimeoutError is one
        return Outcome(Meaning.UNAVAILABLE, error)
    return Outcome(Meaning.FAULT, error)


def http_status(error: BaseException) -> int | None:
    """The status of an HTTP answer that a client's exception stands for, 400 to 599."""
    response = _attribute(error, "response")
    for owner, name in (
        (error, "status"),
        (error, "status_code"),
        (error, "code"),
        (response, "status_code"),
    ):
        value = _attribute(owner, name)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return int(value)
    return None


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that an answer's Retry-After asks for, as a number or as a date; or that
    an exception says itself, by its `retry_after`.
    """
    own = _attribute(error, "retry_after")
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        return _bounded(float(own))
    for owner in (_attribute(error, "response"), error):
        headers = _attribute(owner, "headers")
        get = _attribute(headers, "get")
        if not callable(get):
            continue
        try:
            text = get("Retry-After") or get("retry-after")
            if text is not None:
                return retry_after_seconds(str(text))
        except Exception:
            continue  # not headers as HTTP has them
    return None


def retry_after_seconds(text: str) -> float | None:
    """Seconds that the header Retry-After asks for, as a number or as a date; None
    where it is neither.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return _bounded(float(text[:10]))
    from email.utils import parsedate_to_datetime  # a date is rare, and this import is not small

    try:
        at = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return _bounded(max(0.0, at - time.time()))


def _bounded(seconds: float | None) -> float | None:
    if seconds is None or not seconds >= 0.0:
        return None
    return min(seconds, _LONGEST_RETRY_AFTER)


def _attribute(owner: object, name: str) -> Any:
    """Of an exception that is not ours: reading it may run code that raises."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None
