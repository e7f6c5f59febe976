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
    ├── DirectoryInUse        another process owns the buffer's directory
    ├── FormatError           a file is of an unknown version, or another buffer's
    └── SinkGone              (also OSError) a sink will never take anything again

Two questions sort every refusal: is it worth trying again (`NotNow`, with the seconds
to wait), or never (`InvalidEvents`, `NeverAdmitted`)? Nothing was changed by a call
that raised one of these. A buffer refuses by its answer, an `Admission`, whose
`raise_for_rejection` raises them where exceptions are preferred.
"""

from __future__ import annotations

import copyreg
import queue
from typing import Any

__all__ = [
    "BackpressureError",
    "BatchStateError",
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
    "RateLimited",
    "SinkGone",
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


class SinkGone(BackpressureError, OSError):
    """The sink will never take anything again, for instance a pipe whose reader has
    ended.
    """

    __reduce__ = OSError.__reduce__  # which knows of the file's name
