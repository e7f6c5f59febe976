"""Batch: what a consumer holds between get_batch and its ack or nack.

A batch is a copy: it does not pin the ring's memory layout, may be kept as long as the
consumer likes, and can be read from any thread. Its events stay the buffer's
responsibility until `ack()`; `nack()`, an exception out of its `with` block, or losing
the last reference to it gives them back for redelivery. The last of these says nothing
about the sink, and counts as no attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, overload

import numpy as np

from ringbuf import Messages

if TYPE_CHECKING:
    import numpy.typing as npt

    from backpressure.lanes.handout import Handout
    from backpressure.policies.circuit_breaker import Permit

__all__ = ["Batch", "BatchOwner"]


class BatchOwner(Protocol):
    """What a batch is settled with: the buffer's outlet."""

    def ack(self, batch: Batch) -> None: ...
    def nack(self, batch: Batch, error: BaseException | str | None) -> None: ...
    def settle(
        self,
        batch: Batch,
        retry: Iterable[int],
        reject: Iterable[int] | Mapping[int, object],
        error: BaseException | str | None,
    ) -> None: ...


class Batch:
    """Events of one priority, in order; a sequence of bytes.

    len(batch), iteration, indexing: events as bytes, without their newline. `data`
    (uint8) and `offsets` (int64, one more than there are events): the same as numpy
    columns, event i being data[offsets[i]:offsets[i + 1]]. `__arrow_c_array__`: the
    same as an Arrow large-binary array, without a copy.

    Exactly one of `ack`, `nack` and `settle` counts; a second one raises
    BatchStateError. As a context manager a batch acks itself at the end of the block,
    and on an exception nacks itself and lets the exception through.
    """

    __slots__ = (
        "__weakref__",
        "_handout",
        "_owner",
        "asked",
        "buffer_id",
        "filled",
        "permit",
        "taken_at",
        "trial",
    )

    def __init__(
        self,
        owner: BatchOwner,
        permit: Permit,
        *,
        buffer_id: str,
        asked: int,
        taken_at: float,
    ) -> None:
        #: Set by the lane where it hands it out: what ends this batch from then on,
        #: also an error on its way to the consumer, gives the events back.
        self._handout: Handout
        self._owner = owner
        #: The circuit breaker's leave to call the sink; settled together with the
        #: batch.
        self.permit = permit
        self.buffer_id = buffer_id
        #: How many events the batch could have had.
        self.asked = asked
        #: Whether it fills the adaptive batch size; None: something else kept it
        #: smaller.
        self.filled: bool | None = None
        #: When it was handed out, on the buffer's clock (seconds).
        self.taken_at = taken_at
        #: Whether more batches were out with it than is known to pay: then its latency
        #: says nothing about its size.
        self.trial = False

    # ------------------------------------------------------------ content

    def __len__(self) -> int:
        return len(self._handout.messages)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._handout.messages)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Messages: ...
    def __getitem__(self, index: int | slice) -> bytes | Messages:
        return self._handout.messages[index]

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """All payloads, end to end; read-only."""
        return self._handout.messages.data

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each event starts in `data`, and at the end where the last one ends;
        read-only.
        """
        return self._handout.messages.offsets

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return self._handout.messages.nbytes

    def join(self, sep: bytes = b"\n", end: bytes = b"") -> bytes:
        """All events as one bytes object, with `sep` between them and `end` after the
        last.
        """
        return self._handout.messages.join(sep, end)

    def join_into(self, target: Any, start: int = 0, sep: bytes = b"\n") -> tuple[int, int]:
        """Write events from number `start` on into a writable buffer, each followed by
        `sep`, as many as fit.

        Returns (events, bytes written); (0, 0) where not even one fits.
        """
        return self._handout.messages.join_into(target, start, sep)

    def tolist(self) -> list[bytes]:
        """The events as a list."""
        return self._handout.messages.tolist()

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        """The Arrow PyCapsule interface: pyarrow.array(batch), polars.Series(batch)."""
        return self._handout.messages.__arrow_c_array__(requested_schema)

    # ------------------------------------------------------------ identity

    @property
    def priority(self) -> int:
        """1, the most urgent, to 5."""
        return self._handout.lane.priority

    @property
    def first_seq(self) -> int:
        """The lane's number of the first event."""
        return self._handout.messages.first_seq

    @property
    def seqs(self) -> npt.NDArray[np.uint64]:
        """The lane's number of each event. They follow each other, but where events
        between them were settled before.
        """
        return self._handout.seqs()

    @property
    def attempt(self) -> int:
        """1 at the first delivery, one more at each redelivery."""
        return self._handout.attempt

    @property
    def id(self) -> str:
        """The same at every redelivery of these events, and of no others: a sink's
        idempotence key.
        """
        key = f"{self.buffer_id}-{self.priority}-{self.first_seq}+{len(self)}"
        if self._handout.follows_itself:
            return key
        import hashlib  # which loads OpenSSL, for what few batches need

        return f"{key}-{hashlib.blake2b(self.seqs.tobytes(), digest_size=8).hexdigest()}"

    @property
    def settled(self) -> bool:
        """Whether it was acked, nacked or settled, or the buffer has ended."""
        return not self._handout.out

    # ------------------------------------------------------------ settling

    def ack(self) -> None:
        """The events have been delivered: the buffer may forget them."""
        self._owner.ack(self)

    def nack(self, error: BaseException | str | None = None) -> None:
        """The events have not been delivered: they go out again, in their place, after
        a pause that grows with the failures.

        error: what the sink said. What it means for the batch, the circuit breaker and
        the error rates is what it would mean out of a sink: `BatchRejected` and
        `BatchTooLarge` halve the batch, a `PartialFailure` settles it event by event. A
        text or None is a fault of unknown cause. An error that the breaker ignores (a
        cancellation, KeyboardInterrupt, one of `ignored_exceptions`) says nothing about
        the sink or the batch: no policy hears of it, and it is no attempt, so `attempt`
        and the pause stay as they were.
        """
        self._owner.nack(self, error)

    def settle(
        self,
        retry: Iterable[int] = (),
        reject: Iterable[int] | Mapping[int, object] = (),
        error: BaseException | str | None = None,
    ) -> None:
        """Settle event by event, each named by its index in the batch: those in `retry`
        go out again, those in `reject` become dead letters, all others are acked.

        reject: may map each index to its error. error: what the sink said, for those
        that have none of their own. Raises ValueError for an index that is not in the
        batch or is named twice; then nothing is settled.
        """
        self._owner.settle(self, retry, reject, error)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if self._handout.out:
            if error is None:
                self.ack()
            else:
                self.nack(error)
        return False

    def __reduce__(self) -> NoReturn:
        # A copy, or what a pickle makes, would be a second owner of the same events.
        raise TypeError(
            "a batch cannot be copied or pickled, since only one holder can ack it: "
            "copy its events (batch.tolist(), batch.join()) instead"
        )

    def __repr__(self) -> str:
        return (
            f"Batch({len(self)} events, {self.nbytes} bytes, priority={self.priority}, "
            f"first_seq={self.first_seq}, attempt={self.attempt})"
        )
