"""The law by shares: open where too large a share of the calls in a window failed, or
was slow, by the letter of the config.

Not safe for several threads: the circuit breaker's lock guards it.
"""

from __future__ import annotations

from typing import Final

from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig
from backpressure.policies.circuit_breaker.windows import CountWindow, TimeWindow

__all__ = ["ShareLaw"]

# A share that is judged after every call exceeds the true one by a few standard
# deviations sooner or later, by mere chance. By this many it does not within years.
# Less has to last: a callee that fails right at the threshold for a few seconds, and
# does most of its work, is not gone (in the flapping of bench/overload each trip cost
# half a minute of it).
_DEVIATIONS: Final = 4.0


class ShareLaw:
    """Judges by the windows that the breaker feeds: of the last seconds, and of the
    `last` results where there is such a one.
    """

    __slots__ = ("_config", "_last", "_over_since", "_window", "_windows")

    def __init__(
        self, config: CircuitBreakerConfig, window: TimeWindow, last: CountWindow | None
    ) -> None:
        self._config = config
        self._window = window
        self._last = last
        # All windows, each of which may trip.
        self._windows: tuple[TimeWindow | CountWindow, ...] = (
            window,
            *([last] if last is not None else ()),
        )
        # Since when the window of seconds has been over a threshold; None: it is not.
        self._over_since: float | None = None

    def add(self, calls: int, failed: int, slow: int) -> None:
        """The windows have them already."""

    def rolled(self) -> None:
        """The window of seconds has dropped what is too old."""
        if self._over_since is not None and self._over(self._window) is None:
            self._over_since = None

    def clear(self) -> None:
        """Begin anew, with windows that were emptied."""
        self._over_since = None

    @property
    def is_calm(self) -> bool:
        """Whether no success could trip. It can only where the rate of failure is that
        high already, and it is the one that makes the calls enough, or the first after
        others have left the window; below the threshold it lowers the rate.
        """
        threshold = self._config.failure_threshold
        return not any(
            window.failed and window.failed / window.calls >= threshold for window in self._windows
        )

    def verdict(self, now: float, since: float) -> str | None:
        """Why it is to open, in words; None: it is not. It closed at `since`."""
        for window in self._windows:
            why = self._over(window)
            if why is not None and (window is self._last or self._is_beyond_doubt(now)):
                return why
        return None

    def of_probes(self, results: int, failed: int, slow: int) -> tuple[bool, str] | None:
        """Whether the probes have passed, and why; None: more are needed."""
        quorum = self._config.quorum
        # Shares of the whole quorum, not of what is in so far: this reopens once no
        # further success could help.
        why = self._config.over(failed, slow, quorum)
        if why is not None:
            return False, f"probes: {why}"
        if results >= quorum:
            return True, f"{failed} of {results} probes failed"
        return None

    def _over(self, window: TimeWindow | CountWindow) -> str | None:
        """Which threshold it reaches, if it holds enough calls to tell."""
        if window.calls < self._config.min_requests:
            return None
        return self._config.over(window.failed, window.slow, window.calls)

    def _is_beyond_doubt(self, now: float) -> bool:
        """Whether the window of seconds, which is over a threshold, is so by far, for
        long, or in all that there ever was.

        Of few calls, less than twice those that were asked for, the share is taken at
        its word.
        """
        config, window = self._config, self._window
        if self._over_since is None:
            self._over_since = now
        if (
            now - self._over_since >= config.monitoring_interval / 2.0
            or window.is_new
            or window.calls < 2 * config.min_requests
        ):
            return True
        return config.over(window.failed, window.slow, window.calls, _DEVIATIONS) is not None
