"""NOT_GIVEN: an argument that the caller leaves to the callee, where None says
something.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["NOT_GIVEN", "NotGiven"]


class NotGiven(Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


#: A timeout that the caller leaves to the callee.
NOT_GIVEN: Final = NotGiven.NOT_GIVEN
