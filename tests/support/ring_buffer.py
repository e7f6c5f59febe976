"""What the tests of RingBuffer share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, cast

from ringbuf._records.blocks import Span

#: As threads under a GIL use it; as those without one do; as processes do.
MODES = ["alone", "exchanges"] + ["shared"] * (sys.platform == "linux")


def records_of(span: Span) -> list[Any]:
    """What iterating over it gives.

    A span has a length and items, which are enough for that, and no `__iter__`, which
    is all that a type checker looks for.
    """
    return list(cast("Iterable[Any]", span))
