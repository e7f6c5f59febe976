"""What reading a lane's disk tier yields: a Run of events, or Lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backpressure.spill.blocks import BlockHeader, Decoder
from ringbuf import Messages

__all__ = ["Lost", "Run", "decoded_run", "part_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Events with consecutive numbers.

    Event i is data[offsets[i]:offsets[i + 1]] and has number first_seq + i.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    first_seq: int
    #: What was kept with the first of them: a time in ns since 1970; 0: not known.
    time_ns: int
    #: The same of each block: the number after its last event, and the time.
    written: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def end_seq(self) -> int:
        """The number after the last one."""
        return self.first_seq + len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return int(self.offsets[-1] - self.offsets[0])

    def messages(self) -> Messages:
        """The events as Messages over the same memory."""
        return Messages.from_columns(self.data, self.offsets, self.first_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Numbers that are gone: from `first_seq` up to, not including, `end_seq`.

    Of these, `events` were events.
    """

    first_seq: int
    end_seq: int
    events: int
    #: The file, and what is wrong in it.
    reason: str


def decoded_run(
    decoder: Decoder, header: BlockHeader, block: memoryview, target: npt.NDArray[np.uint8]
) -> Run | None:
    """The events of a block, with the payload in `target`.

    None where the content is not what the header says.
    """
    offsets = decoder.decode(header, block, target)
    if offsets is None:
        return None
    return Run(
        data=target,
        offsets=offsets,
        first_seq=header.first_seq,
        time_ns=header.time_ns,
        written=((header.end_seq, header.time_ns),),
    )


def part_of(run: Run, start: int, stop: int, room: int, alone: bool) -> Run:
    """The events of `run` from `start` on, before `stop`, within `room` bytes.

    With `alone`, one at least.
    """
    low = start - run.first_seq
    high = min(stop, run.end_seq) - run.first_seq
    fits = int(np.searchsorted(run.offsets, run.offsets[low] + room, "right")) - 1
    high = min(high, max(fits, low + 1) if alone else fits)
    return Run(
        data=run.data,
        offsets=run.offsets[low : high + 1],
        first_seq=start,
        time_ns=run.time_ns,
        written=run.written,
    )
