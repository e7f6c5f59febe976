"""Spiller: the thread that moves events from rings to disk and makes them durable.

`Durability.PROCESS`: only under pressure, when a ring is more than half full, and then
down to a quarter. INTERVAL and COMMIT: all the time, and every `sync_interval` what was
written is synced, once for all events that came meanwhile (group commit).

A disk that is full, or fails, is tried again after a pause, without limit: meanwhile
the rings fill, and `when_full` says what becomes of new events. Producers never wait
for this thread, except to be durable (COMMIT).

While it runs, pushes leave their checksums to it (`MessageRing.defer_checksums`): what
is in a ring at two checks gets them at the second one, and what came and went in
between never does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from backpressure.base.errors import NotNow
from backpressure.base.latch import Latch
from backpressure.base.log_limiter import LogLimiter
from backpressure.base.reentry import interrupted
from backpressure.base.wakeup import Wakeup
from backpressure.lanes.durable_lane import DurableLane
from backpressure.spill.budget import OverBudget

__all__ = ["Spiller"]

_log = logging.getLogger("backpressure")

# Spilling begins in time to keep up, at half a ring, and ends where it need not begin
# again at once.
_HIGH: Final = 0.5
_LOW: Final = 0.25
# How often (seconds) the fill of the rings is checked: real lines take longer to fill a
# ring of 64 MiB.
_CHECK_INTERVAL: Final = 0.01
# Between two rounds of checksums (seconds), at least: so that waking up often, for
# COMMIT, makes none for what is about to go.
_CHECKSUM_INTERVAL: Final = _CHECK_INTERVAL / 2
# Each check prefaults a ring that fills this far (bytes) ahead of the producers: what
# comes until the next one at 1.6 GB a second, which is also about what one thread can
# prefault.
_WARM_AHEAD: Final = 16 << 20
# Pause (seconds) after the disk refused: room comes back in seconds, not microseconds.
_PAUSE: Final = 0.2
# A disk that goes on refusing is logged this often (seconds) at most.
_LOG_INTERVAL: Final = 10.0


class Spiller:
    """One thread for all lanes of a buffer."""

    def __init__(
        self,
        lanes: Sequence[DurableLane],
        *,
        sync_interval: float | None,
        make_room: Callable[[DurableLane], bool],
        moved: Callable[[], object],
        failed: Callable[[NotNow | None], object],
    ) -> None:
        """One for these lanes, not yet started.

        sync_interval: seconds between syncs; None spills under pressure only.
        make_room: drops something less urgent than the given lane's events, and returns
            whether it did.
        moved: called when rings have room, or events became durable.
        failed: called with the error when the disk begins to refuse, and with None when
            it takes events again.
        """
        self._lanes = lanes
        self._interval = sync_interval
        self._make_room = make_room
        self._moved = moved
        self._failed = failed
        self._wake = Latch()
        self._durable = Wakeup()
        self._stop = False
        self._checksums_at = float("-inf")
        self._few_lines = LogLimiter(_LOG_INTERVAL)
        #: The share of a ring at which spilling begins; None: it never ends.
        self.mark: Final = _HIGH if sync_interval is None else None
        #: Why the disk refuses events now, or None.
        self.error: NotNow | None = None
        self._thread = threading.Thread(target=self._run, name="backpressure-spiller", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        for lane in self._lanes:
            lane.ring.defer_checksums()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the piece it is writing."""
        self._stop = True
        self._wake.set()
        self._durable.notify()
        if self._thread.is_alive() and not self.is_this_thread():
            self._thread.join()
        for lane in self._lanes:
            if not lane.ring.closed:
                lane.ring.defer_checksums(False)

    def is_this_thread(self) -> bool:
        """Whether the spiller's thread is what calls."""
        return self._thread is threading.current_thread()

    def wake(self) -> None:
        """Check the rings now."""
        self._wake.set()

    def wait_durable(self, lane: DurableLane, seq: int) -> bool:
        """Wait until every event of the lane below `seq` is durable.

        False: the spiller was stopped first, or may have to wait for what this thread
        has interrupted.
        """
        while lane.durable_seq < seq:
            if self._stop or interrupted() is not None:
                self._wake.set()
                return lane.durable_seq >= seq
            self._wake.set()
            self._durable.wait(lambda: self._stop or lane.durable_seq >= seq, 1.0)
        return True

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        interval = _CHECK_INTERVAL if self._interval is None else max(self._interval, 0.0005)
        while not self._stop:
            self._wake.wait(_PAUSE if self.error is not None else interval)
            if self._stop:
                return
            try:
                moved = self._serve_lanes()
            except NotNow as error:
                self._note_refusal(error)
                continue
            except Exception:
                # An error in this library: log it and go on; the rings still hold what
                # is owed.
                if failed := self._few_lines.add("failed", 1, time.monotonic()):
                    _log.exception("spilling failed, %d times since the last line", failed)
                time.sleep(_PAUSE)
                continue
            if self.error is not None:
                self.error = None
                if self._few_lines.add("again", 1, time.monotonic()):
                    _log.warning("the disk takes events again")
                self._failed(None)
            if moved:
                self._moved()

    def _serve_lanes(self) -> bool:
        """Spill and sync each lane once; whether anything was moved."""
        moved = False
        error: NotNow | None = None
        for lane in self._lanes:
            try:
                moved = self._spill_lane(lane) or moved
                if self._stop:
                    break  # by a finaliser in this thread the lanes may even be closed
                if self._interval is not None and lane.store.durable_seq < lane.store.end_seq:
                    lane.sync()
                    moved = True
            except NotNow as refused:
                # Another lane may have better luck.
                error = refused
        self._write_checksums()
        # Also where nothing was moved: what consumers have acked meanwhile need not be
        # durable any more.
        self._durable.notify()
        if error is not None:
            raise error
        return moved

    def _spill_lane(self, lane: DurableLane) -> bool:
        """Spill until the ring is as empty as it should be; whether anything moved."""
        # What is too old need not be written.
        moved = lane.expire_stored() > 0
        lane.ring.warm_ahead(_WARM_AHEAD)
        fill = lane.fill()
        target = 0.0 if self._interval is not None else _LOW
        if self._interval is None and fill < _HIGH:
            return moved
        while not self._stop:
            try:
                if not lane.spill(min(max((fill - _HIGH) / (1.0 - _HIGH), 0.0), 1.0)):
                    break
            except OverBudget:
                if not self._make_room(lane):
                    raise
            moved = True
            self._write_checksums()
            lane.ring.warm_ahead(_WARM_AHEAD)
            fill = lane.fill()
            if fill <= target and (self._interval is None or not lane.ring.used_bytes):
                break
        return moved

    def _write_checksums(self) -> None:
        """Of what has been in the rings since the last round."""
        now = time.monotonic()
        if now - self._checksums_at < _CHECKSUM_INTERVAL:
            return
        self._checksums_at = now
        for lane in self._lanes:
            if self._stop:
                return
            lane.ring.write_checksums(recent=False)

    def _note_refusal(self, error: NotNow) -> None:
        before, self.error = self.error, error
        if self._few_lines.add("refused", 1, time.monotonic()):
            _log.warning("the disk takes no events at present: %s", error)
        if before is None:
            self._failed(error)
