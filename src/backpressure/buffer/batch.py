"""Batch: what a consumer holds between get_batch and its ack or nack.

A batch is a copy: it does not pin the ring's memory layout, may be kept as long as the
consumer likes, and can be read from any thread. Its events stay the buffer's
responsibility until `ack()`; `nack()`, an exception out of its `with` block, or losing
the last reference to it gives them back for redelivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt

from ringbuf import Messages

if TYPE_CHECKING:
    from backpressure.lanes.handout import Handout
    from backpressure.policies.circuit_breaker import Permit

__all__ = ["Batch"]


class Batch:
    """Events of one priority, in order; a sequence of bytes.

    len(batch), iteration, indexing: events as bytes, without their newline. `data`
    (uint8) and `offsets` (int64, one more than there are events): the same as numpy
    columns, event i being data[offsets[i]:offsets[i + 1]]. `__arrow_c_array__`: the
    same as an Arrow large-binary array, without a copy.

    Exactly one of `ack` and `nack` counts; a second one raises BatchStateError. As a
    context manager a batch acks itself at the end of the block, and on an exception
    nacks itself and lets the exception through.
    """

    __slots__ = (
        "__weakref__",
        "_handout",
        "_settle",
        "asked",
        "buffer_id",
        "filled",
        "permit",
        "taken_at",
    )

    def __init__(
        self,
        handout: Handout,
        settle: Callable[[Batch, bool, BaseException | str | None], None],
        permit: Permit,
        *,
        buffer_id: str,
        asked: int,
        filled: bool | None,
        taken_at: float,
    ) -> None:
        self._handout = handout
        self._settle = settle
        #: The circuit breaker's leave to call the sink; settled together with the
        #: batch.
        self.permit = permit
        self.buffer_id = buffer_id
        #: How many events the batch could have had.
        self.asked = asked
        #: Whether it fills the adaptive batch size; None: something else kept it
        #: smaller.
        self.filled = filled
        #: When it was handed out, on the buffer's clock (seconds).
        self.taken_at = taken_at

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
        """The lane's number of the first event; event i has number first_seq + i."""
        return self._handout.messages.first_seq

    @property
    def attempt(self) -> int:
        """1 at the first delivery, one more at each redelivery."""
        return self._handout.attempt

    @property
    def id(self) -> str:
        """The same at every redelivery of these events, and of no others: a sink's
        idempotence key.
        """
        return f"{self.buffer_id}-{self.priority}-{self.first_seq}+{len(self)}"

    # ------------------------------------------------------------ settling

    def ack(self) -> None:
        """The events have been delivered: the buffer may forget them."""
        self._settle(self, True, None)

    def nack(self, error: BaseException | str | None = None) -> None:
        """The events have not been delivered: they go out again, in their place, after
        a pause that grows with `attempt`.

        `error` is what the sink said; it goes into the events and to the circuit
        breaker.
        """
        self._settle(self, False, error)

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

    def __del__(self) -> None:
        # No lock may be taken here: a collection can run in the middle of a method that
        # holds it. So the lane is left a note, and the breaker's permit runs out by its
        # lease.
        handout = getattr(self, "_handout", None)
        if handout is not None and handout.out:
            handout.lane.abandoned.append(handout)

    def __repr__(self) -> str:
        return (
            f"Batch({len(self)} events, {self.nbytes} bytes, priority={self.priority}, "
            f"first_seq={self.first_seq}, attempt={self.attempt})"
        )
