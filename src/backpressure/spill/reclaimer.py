"""Reclaimer: the record of what was acked, and the files that it lets go.

Invariants

 1. A file is deleted after the record that everything in it is settled is durable, and
    from the oldest on; never the newest.
 2. A file that had damage is kept aside instead.
 3. A full disk keeps neither from happening: the reserve is given up for them.

For one thread at a time: the store's lock for settling is held around each call.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from uuid import UUID

from backpressure.spill.config import SpillConfig
from backpressure.spill.files import Files
from backpressure.spill.ledger import Ledger
from backpressure.spill.quarantine import Quarantine
from backpressure.spill.recovery import Recovered
from backpressure.spill.reserve import Reserve
from backpressure.spill.segments import Segment
from backpressure.spill.settled import Settled
from backpressure.spill.writer import Writer

__all__ = ["Reclaimer"]


class Reclaimer:
    """Records what is settled of one lane, and deletes the files in which all is."""

    def __init__(
        self,
        files: Files,
        directory: str,
        lane: int,
        buffer_id: UUID,
        config: SpillConfig,
        found: Recovered,
        settled: Settled,
        writer: Writer,
    ) -> None:
        self._files = files
        self._directory = directory
        self._settled = settled
        self._writer = writer
        self._ledger = Ledger(
            files, directory, lane, buffer_id, config.ack_record_bytes, found.record
        )
        self._damaged = {segment.serial for segment in found.segments if not segment.sound}
        self.quarantine = Quarantine(
            files, directory, config.max_quarantine_bytes, found.quarantined
        )
        self._reserve = Reserve(files, directory, config.reserve_bytes)
        #: Times that the record could not be written or made durable.
        self.failed_acks = 0
        self._count_other_bytes()

    def mark_damaged(self, serial: int) -> None:
        """Something of that file is lost: it is kept aside when all else is settled."""
        self._damaged.add(serial)

    def write_record(self) -> None:
        """Write the record, not yet durably, unless the file system refuses."""
        try:
            self._reserve.run(lambda: self._ledger.write(self._settled, self._writer.durable))
        except OSError:
            self.failed_acks += 1

    def sync_record(self) -> None:
        """Write the record, durably. Raises OSError."""
        self._reserve.run(lambda: self._ledger.write(self._settled, self._writer.durable))
        self._reserve.run(self._ledger.sync)

    def make_durable(self, prefix: int) -> bool:
        """Whether it is durable that everything below `prefix` is settled."""
        try:
            self.sync_record()
        except OSError:
            self.failed_acks += 1
        durable = self._ledger.durable
        return durable is not None and durable.prefix >= prefix

    def delete_settled(self) -> None:
        """Delete the files in which everything is settled."""
        segments = self._writer.view.segments
        done = self._count_settled(segments)
        if done == 0 or not self.make_durable(segments[done].base):
            return
        gone = 0
        for segment in segments[:done]:
            try:
                self._delete_segment(segment)
            except OSError:
                break  # next time
            gone += 1
        self._writer.drop_oldest(gone)
        if gone:
            self._reserve.make()
        self._count_other_bytes()

    def replace_all(self) -> None:
        """Begin an empty file and delete the others, if the file system allows it.

        Everything that was stored is settled. The header of the new file says where the
        lane is.
        """
        if not self.make_durable(self._writer.end_seq):
            return
        try:
            self._reserve.run(self._writer.restart)
        except OSError:
            return
        self.delete_settled()

    def close(self) -> None:
        """Close the record's file."""
        self._ledger.close()

    def _count_settled(self, segments: tuple[Segment, ...]) -> int:
        """How many of the oldest files, never the newest, hold nothing that is owed."""
        # The base of the next one is where a file's numbers end.
        return max(
            bisect_right(segments, self._settled.seq, key=lambda segment: segment.base) - 1, 0
        )

    def _delete_segment(self, segment: Segment) -> None:
        """Delete a file, or keep it aside if it was damaged. Raises OSError."""
        if segment.serial in self._damaged:
            self.quarantine.add(segment)
            self._damaged.discard(segment.serial)
        else:
            self._files.unlink(os.path.join(self._directory, segment.name))

    def _count_other_bytes(self) -> None:
        """Tell the writer what of max_disk_bytes is not segments."""
        self._writer.other_bytes = (
            self._ledger.nbytes + self._reserve.nbytes + self.quarantine.nbytes
        )
