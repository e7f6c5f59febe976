"""DiskTier: what a buffer with a directory has besides its lanes: the directory, the
dead letters, the spiller.

It opens all of it or nothing, and closes it in the order in which nothing is lost.

A directory may have been made with another number of priorities. Lanes that it lacks
are made. A surplus lane, beyond `flow_control.priority_levels`, is opened where it is
there: what it holds is owed, and it takes nothing more. One that holds nothing is
closed again; its files stay, so that its numbers go on if the priority comes back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from backpressure.base.errors import BufferClosed, NotNow
from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.buffer.config import BufferConfig, Durability
from backpressure.lanes.age_limit import AgeLimit
from backpressure.lanes.attempts import SinkRecord
from backpressure.lanes.durable_lane import DurableLane, lane_name
from backpressure.lanes.spiller import Spiller
from backpressure.spill import BufferDirectory, DeadLetterStore
from backpressure.spill.budget import DiskBudget
from backpressure.spill.config import within

__all__ = ["DiskTier"]

# How long (seconds) close() tries a disk that refuses: long enough for a passing fault.
# What stays in a ring is in its file.
_CLOSE_PATIENCE: Final = 2.0


class DiskTier:
    """Opened by a BufferManager whose config has a directory."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: BufferConfig,
        *,
        sink: SinkRecord,
        make_room: Callable[[DurableLane], bool],
        moved: Callable[[], object],
        failed: Callable[[NotNow | None], object],
        letters_lost: Callable[[int], object] = lambda letters: None,
        age: Callable[[], AgeLimit | None] = lambda: None,
    ) -> None:
        """letters_lost: called with the number of dead letters that were forgotten.
        age: makes the limit of one lane.
        """
        config.check_disk_room()
        started = time.monotonic()
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self.directory = BufferDirectory(path)
        #: One for each priority, then the surplus ones. The most urgent first.
        self.lanes: list[DurableLane] = []
        self.dead_letters: DeadLetterStore | None = None
        try:
            most = config.max_disk_bytes
            budget = None if most is None else DiskBudget(most)
            self.dead_letters = DeadLetterStore(
                self.directory.lane("dead-letters"),
                self.directory.buffer_id,
                fs=self.directory.fs,
                most_letters=config.effective_max_dead_letters,
                most_bytes=config.effective_max_dead_letter_bytes,
                budget=budget,
                overflowed=letters_lost,
            )
            levels = config.flow_control.priority_levels
            surplus = [
                priority
                for priority in range(levels + 1, PRIORITY_LEVELS + 1)
                if self.directory.has_lane(lane_name(priority))
            ]
            spill = (
                config.spill if most is None else within(config.spill, most, levels + len(surplus))
            )
            # At once: most of what opening a lane takes is waiting for the system.
            with ThreadPoolExecutor(PRIORITY_LEVELS) as opener:
                opening = [
                    opener.submit(
                        DurableLane,
                        priority,
                        config.lane_bytes,
                        self.directory,
                        spill,
                        sink,
                        config.ring_checksums,
                        age(),
                        budget,
                    )
                    for priority in (*range(1, levels + 1), *surplus)
                ]
            self.lanes += [lane.result() for lane in opening if lane.exception() is None]
            for lane in opening:
                lane.result()
            for drained in self.lanes[levels:]:
                if not drained.resident and not drained.missing:
                    self.lanes.remove(drained)
                    drained.close()
        except BaseException:
            self._let_go()
            raise
        #: Seconds that opening took, recovery included.
        self.recovery_seconds: Final = time.monotonic() - started
        #: Whether an add has to wait until what it brought is durable.
        self.commits: Final = config.durability is Durability.COMMIT
        self.spiller = Spiller(
            self.lanes,
            sync_interval=None if config.durability is Durability.PROCESS else config.sync_interval,
            make_room=make_room,
            moved=moved,
            failed=failed,
        )

    def flush(self) -> None:
        """Write all that is owed now to disk, durably.

        Raises DiskFull or DiskFailed.
        """
        for lane in self.lanes:
            # What comes in meanwhile is for the next flush, or this one would not end.
            end_seq = lane.ring.next_seq
            while lane.store.end_seq < end_seq and lane.spill(0.0):
                pass
            lane.sync()

    def close(self) -> list[NotNow]:
        """Write what is owed, and let go of everything; what the disk refused is still
        in the ring files. Returns why.
        """
        self.spiller.stop()
        refused = []
        deadline = time.monotonic() + _CLOSE_PATIENCE
        for lane in self.lanes:
            while True:
                try:
                    while lane.spill(0.0):
                        pass
                    break
                except BufferClosed:
                    break  # by a call that an exception ended
                except NotNow as error:
                    if time.monotonic() >= deadline:
                        refused.append(error)
                        break
                    time.sleep(0.05)
        self._let_go()
        return refused

    def _let_go(self) -> None:
        for lane in self.lanes:
            lane.close()
        if self.dead_letters is not None:
            self.dead_letters.close()
        self.directory.close()
