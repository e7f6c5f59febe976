"""Every public exception of both packages comes whole out of a pickle and a copy: else
it would break a process pool.
"""

from __future__ import annotations

import copy
import errno
import importlib
import pickle
import pkgutil
from typing import Any

import pytest

import backpressure
import ringbuf

#: What is made of other arguments than one text.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "BadUpload": (400, "the upload broke off"),
    "BufferFull": ("full", 1.5),
    "CircuitOpenError": ("open", 1.5),
    "ConfigError": ("rate", "too high"),
    "DiskFailed": ("failed", 1.5, errno.EIO),
    "DiskFull": ("full", 1.5),
    "EventTooLarge": (3, 5_000, 4_072),
    "FormatError": ("/srv/buffer/ring", "of a later version"),
    "HttpSinkError": (503, "busy"),
    "LineSkipped": (7,),
    "LineTooLong": ("a.log", 5, 100),
    "MessageTooLarge": (3, 5_000, 4_072),
    "Mistakes": (["one: is wrong", "two: too"],),
    "NotNow": ("not now", 1.5),
    "OverBudget": ("full", 1.5),
    "PartialFailure": ("half of it",),
    "RateLimited": ("over the rate", 1.5),
    "SinkUnavailable": ("maintenance",),
    "SinkGone": (errno.EPIPE, "the reader has ended", "/dev/stdout"),
}


def public_exceptions() -> list[type[BaseException]]:
    found: dict[str, type[BaseException]] = {}
    for package in (ringbuf, backpressure):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name.endswith("__main__"):
                continue
            try:
                members = vars(importlib.import_module(module.name)).values()
            except ImportError:
                continue  # what it needs is not installed
            for value in members:
                if (
                    isinstance(value, type)
                    and issubclass(value, BaseException)
                    and value.__module__.split(".")[0] in ("ringbuf", "backpressure")
                    and not value.__name__.startswith("_")
                ):
                    found[f"{value.__module__}.{value.__name__}"] = value
    assert len(found) > 20
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("kind", public_exceptions(), ids=lambda kind: kind.__name__)
def test_it_comes_whole_out_of_a_pickle_and_a_copy(kind: type[BaseException]) -> None:
    arguments = ARGUMENTS.get(kind.__name__)
    if arguments is None:
        ours = [
            base
            for base in kind.__mro__
            if base.__module__.startswith(("ringbuf.", "backpressure."))
        ]
        assert not any("__init__" in vars(base) for base in ours), (
            f"{kind.__name__} has no ARGUMENTS"
        )
        arguments = ("what is wrong",)
    error = kind(*arguments)
    error.noted = ["by a caller"]  # type: ignore[attr-defined]
    copies = [pickle.loads(pickle.dumps(error, number)) for number in range(6)]
    for again in [*copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(again) is kind
        assert (str(again), repr(again), again.args) == (str(error), repr(error), error.args)
        assert vars(again) == vars(error)
        for name in ("errno", "strerror", "filename", "retry_after"):
            assert getattr(again, name, None) == getattr(error, name, None)
