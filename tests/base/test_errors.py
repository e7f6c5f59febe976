"""The tree of errors: its drawing shows what there is, and each is what it promises to
be as well.
"""

from __future__ import annotations

import errno
import pickle
import queue
import re

import pytest

import backpressure
from backpressure.base import errors
from backpressure.base.errors import BackpressureError, SinkGone


def test_the_drawing_is_the_tree() -> None:
    """Every class has its line, below the class that it derives from, with what else it
    is.
    """
    drawn: dict[str, tuple[str | None, str | None]] = {}
    parents: list[str] = []
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+)(?: +\(also ([\w.]+)\))?", line):
            depth = len(match[1]) // 4
            parents[depth:] = [match[2]]
            drawn[match[2]] = (parents[depth - 1] if depth else None, match[3])
    assert set(drawn) == set(errors.__all__)
    for name, (parent, other) in drawn.items():
        bases = [
            base.__name__ if base.__module__ != "queue" else f"queue.{base.__name__}"
            for base in getattr(errors, name).__bases__
        ]
        assert bases == [one for one in (parent or "Exception", other) if one is not None], name


def test_all_are_exported() -> None:
    assert set(errors.__all__) <= set(backpressure.__all__)
    assert issubclass(errors.BufferFull, queue.Full)


def test_a_sink_that_is_gone_is_an_os_error_too() -> None:
    with pytest.raises(OSError, match="reader") as caught:
        raise SinkGone(errno.EPIPE, "the reader has ended", "/dev/stdout")
    error = caught.value
    assert isinstance(error, BackpressureError)
    assert (error.errno, error.filename) == (errno.EPIPE, "/dev/stdout")
    assert pickle.loads(pickle.dumps(error)).errno == errno.EPIPE
    assert str(SinkGone("closed")) == "closed"
