"""Every exception that this library raises by itself.

    BackpressureError
    ├── ConfigError           (also ValueError) a config field is out of its range
    ├── InvalidEvents         (also ValueError) what was given can never be accepted
    │   └── EventTooLarge     one event is larger than its lane
    ├── NotNow                refused for now; `retry_after` says for how long
    │   ├── BufferFull        (also queue.Full) no room
    │   ├── RateLimited       over the rate, or shed by emergency mode
    │   ├── CircuitOpenError  the circuit breaker lets no call through
    │   ├── DiskFull          no room on the disk, or max_disk_bytes reached
    │   └── DiskFailed        the disk answered with another error
    ├── NeverAdmitted         (also ValueError) no token will ever come, the rate is 0
    ├── BufferClosed          the buffer was closed
    ├── BatchStateError       a batch was acked or nacked twice
    ├── AlreadyDelivering     (also RuntimeError) the buffer has a delivery already
    ├── DirectoryInUse        another process owns the buffer's directory
    ├── FormatError           a file is of an unknown version, or another buffer's
    └── SinkOutcome           what a sink says of a batch that it did not take:
        ├── SinkUnavailable   it is away or overloaded: later
        ├── BatchTooLarge     too many bytes or events: in smaller parts
        ├── BatchRejected     never this batch
        ├── PartialFailure    some of its events later, or never
        └── SinkGone          (also OSError) never again, whatever it is

What a sink raises besides these means what delivery/outcomes.py says.

Two questions sort every refusal: is it worth trying again (`NotNow`, with the seconds
to wait), or never (`InvalidEvents`, `NeverAdmitted`)? Nothing was changed by a call
that raised one of these. A buffer refuses by its answer, an `Admission`, whose
`raise_for_rejection` raises them where exceptions are preferred.
"""

from __future__ import annotations

import copyreg
import queue
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "AlreadyDelivering",
    "BackpressureError",
    "BatchRejected",
    "BatchStateError",
    "BatchTooLarge",
    "BufferClosed",
    "BufferFull",
    "CircuitOpenError",
    "ConfigError",
    "DirectoryInUse",
    "DiskFailed",
    "DiskFull",
    "EventTooLarge",
    "FormatError",
    "InvalidEvents",
    "NeverAdmitted",
    "NotNow",
    "PartialFailure",
    "RateLimited",
    "SinkGone",
    "SinkOutcome",
    "SinkUnavailable",
]


class BackpressureError(Exception):
    """The root: catches whatever this library raises by itself."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        # By `__new__`, which keeps `args`: the arguments that `__init__` has made a
        # message of are others.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(BackpressureError, ValueError):
    """A config field is out of its range. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidEvents(BackpressureError, ValueError):
    """What was handed in can never be accepted in this form; nothing of it was."""


class EventTooLarge(InvalidEvents):
    """One event is larger than its lane can ever hold.

    `index` is its place in what was given, `nbytes` its size and `limit` the largest
    size, both in bytes.
    """

    def __init__(self, index: int, nbytes: int, limit: int) -> None:
        super().__init__(
            f"event {index} has {nbytes:,} bytes, and the lane can hold at most {limit:,} in one "
            f"event: raise lane_bytes, or split the event"
        )
        self.index = index
        self.nbytes = nbytes
        self.limit = limit


class NotNow(BackpressureError):
    """Refused for the moment. `retry_after` is in seconds; 0.0 where no estimate can be
    made.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BufferFull(NotNow, queue.Full):
    """No room. Also a `queue.Full`, so that code written for `queue.Queue` goes on
    working.
    """


class RateLimited(NotNow):
    """Over the configured rate, or shed by emergency mode."""


class CircuitOpenError(NotNow):
    """The circuit breaker lets no call through before `retry_after` seconds have
    passed.
    """


class DiskFull(NotNow):
    """No room on the disk (ENOSPC, EDQUOT), or `max_disk_bytes` is reached; what was
    stored before stays whole.
    """


class DiskFailed(NotNow):
    """A call to the file system failed. `errno` says how; what was stored before stays
    whole.
    """

    def __init__(self, message: str, retry_after: float = 0.0, errno: int | None = None) -> None:
        super().__init__(message, retry_after)
        self.errno = errno


class NeverAdmitted(BackpressureError, ValueError):
    """The rate is 0 and the burst is spent: raise the rate, waiting does not help."""


class BufferClosed(BackpressureError):
    """The buffer was closed."""


class BatchStateError(BackpressureError):
    """A batch was acked or nacked a second time."""


class DirectoryInUse(BackpressureError):
    """Another process, or another buffer of this one, owns the directory."""


class FormatError(BackpressureError):
    """A file that this version must not touch: of a later format, or of another buffer.
    `path` names it; it was left as it is.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class AlreadyDelivering(BackpressureError, RuntimeError):
    """The buffer delivers to a sink already. One circuit breaker cannot judge two:
    several sinks are several buffers.
    """


class SinkOutcome(BackpressureError):
    """What a sink raises to say what became of a batch; one of the classes below."""


class SinkUnavailable(SinkOutcome):
    """The sink is away or overloaded: the batch goes out again, after `retry_after`
    seconds or, where that is None, after the buffer's own pause.

    The first argument is a text or these seconds: `SinkUnavailable(5.0)`,
    `SinkUnavailable("maintenance", retry_after=5.0)`.
    """

    def __init__(
        self, reason: str | float | None = None, /, retry_after: float | None = None
    ) -> None:
        if not isinstance(reason, str) and reason is not None:
            retry_after, reason = float(reason), None
        if retry_after is not None and not retry_after >= 0.0:
            raise ValueError(f"retry_after must be seconds from 0 on, or None, not {retry_after}")
        super().__init__(reason if reason is not None else "the sink is not available")
        self.retry_after = retry_after


class BatchTooLarge(SinkOutcome):
    """The batch has more bytes or events than the sink takes at a time: it is halved,
    and later batches are smaller. A single event becomes a dead letter.
    """


class BatchRejected(SinkOutcome):
    """The sink will never take this batch as it is, and takes others: it is halved
    until what it rejects is found. A single event becomes a dead letter.
    """


class PartialFailure(SinkOutcome):
    """The sink took the batch but for some events, named by their index in it.

    retry: those that are to be sent again. reject: those that it will never take; where
        it maps them to errors, each dead letter has its own. All others count as
        delivered.
    """

    def __init__(
        self,
        reason: str | None = None,
        *,
        retry: Iterable[int] = (),
        reject: Iterable[int] | Mapping[int, object] = (),
    ) -> None:
        self.retry = tuple(retry)
        self.reject: tuple[int, ...] | dict[int, object] = (
            dict(reject) if isinstance(reject, Mapping) else tuple(reject)
        )
        if reason is None:
            reason = f"{len(self.retry)} events to be retried, {len(self.reject)} rejected"
        super().__init__(reason)


class SinkGone(SinkOutcome, OSError):
    """The sink will never take anything again, for instance a pipe whose reader has
    ended.
    """

    __reduce__ = OSError.__reduce__  # which knows of the file's name
