"""OpenFiles: how many followed files may be open at once.

Beyond that those without news are closed, and opened again when their stat changes. A
process needs descriptors for its sinks, its connections and its disk tier as well, so
the files get half of what it may have.
"""

from __future__ import annotations

import sys
import threading
from typing import Final

__all__ = ["OpenFiles", "raise_soft_limit"]

_LEAST: Final = 8
# More than anybody follows; some systems say "unlimited", and a table of that many
# costs memory.
_MOST: Final = 1 << 16
#: Where the system does not say.
_USUAL: Final = 256


class OpenFiles:
    """most: None takes half of the soft limit of the process. Any thread."""

    def __init__(self, most: int | None = None) -> None:
        self._most = max(_LEAST, _soft_limit() // 2) if most is None else most
        self._open = 0
        self._lock = threading.Lock()

    @property
    def excess(self) -> int:
        """How many have to be closed."""
        with self._lock:
            return max(0, self._open - self._most)

    def count(self, change: int) -> None:
        """Note that so many more are open."""
        with self._lock:
            self._open += change

    def ran_out(self) -> None:
        """The system had no descriptor left: others use more than half of them."""
        with self._lock:
            self._most = max(_LEAST, min(self._most, self._open) * 3 // 4)


if sys.platform == "win32":

    def _soft_limit() -> int:
        return 2 * _USUAL

    def raise_soft_limit() -> None:
        """There is none."""

else:
    import resource

    def _soft_limit() -> int:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)

    def raise_soft_limit() -> None:
        """Let this process have as many descriptors as it may: the soft limit, often
        1,024, is for programs that use select(2).
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                pass  # then with what there is
