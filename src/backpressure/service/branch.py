"""Branch: what a service has for one sink: a buffer, the sink, and the delivery."""

from __future__ import annotations

from collections.abc import Callable

from backpressure.base.wording import reason
from backpressure.buffer_manager import BufferManager
from backpressure.delivery.delivery import Delivery
from backpressure.service.config import HttpTarget, NamedSink
from backpressure.sinks import Sink

__all__ = ["Branch"]


class Branch:
    """One sink's part of a service. label: what its messages begin with."""

    def __init__(self, config: NamedSink, buffer: BufferManager, sink: Sink, label: str) -> None:
        self.config = config
        self.buffer = buffer
        self.sink = sink
        self.label = label
        self.delivery: Delivery | None = None

    def start(self) -> None:
        """Begin to deliver."""
        target = self.config.target
        self.delivery = self.buffer.deliver_to(
            self.sink,
            workers=target.workers if isinstance(target, HttpTarget) else 1,
            close_sink=False,  # with all else that was opened, at the end
        )

    @property
    def running(self) -> bool:
        """Whether it delivers."""
        return self.delivery is not None and self.delivery.running

    @property
    def drained(self) -> bool:
        """Whether it holds nothing that it could still deliver."""
        return not self.running or not self.buffer.resident

    @property
    def error(self) -> str | None:
        """What ended the delivery before its time, in words."""
        delivery = self.delivery
        if delivery is None or delivery.error is None:
            return None
        return f"{self.label}: {reason(delivery.error)}"

    def hurry(self) -> None:
        """Ask the sink whatever the circuit breaker says: no more will come."""
        if self.delivery is not None:
            self.delivery.hurry()

    def stop_delivery(self) -> None:
        """Deliver no more, and wait for nothing."""
        if self.delivery is not None:
            self.delivery.stop(0.0, drain=False)

    def close_buffer(self) -> tuple[int, int]:
        """Close the buffer: how many events are lost, and how many it keeps on disk."""
        stats = self.buffer.close(timeout=0.0)
        return stats.dropped.get("closed", 0), stats.resident

    def wait(self, seconds: float, note: Callable[[str], object]) -> None:
        """Wait for the delivery's end; `note` gets what ended it before its time."""
        if self.delivery is not None:
            self.delivery.wait(seconds)
            if self.error is not None:
                note(self.error)
