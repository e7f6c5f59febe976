"""The readiness rules behind `GET /buffer/health`.

Unready: what is sent with priority 3, the default, or more urgent is not accepted. A
load balancer should send elsewhere.
Degraded: anything else that is not as it should be. The buffer is there to bear just
that, so a load balancer should go on sending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from backpressure.base.priority import Priority
from backpressure.base.wording import as_text
from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.http.models import Health
from backpressure.policies.circuit_breaker import State

__all__ = ["Parts", "check_all", "check_health"]

#: What gives the parts of the program around a buffer, by name, with what ended each
#: before its time, or None.
Parts: TypeAlias = Callable[[], Mapping[str, str | None]]

_NO_PARTS: Final[Mapping[str, str | None]] = MappingProxyType({})

# A lane whose memory is filled to this part has no room for an event of ordinary size:
# records and alignment take their part.
_FULL: Final = 0.95
# A sink that has failed for so long (seconds) does not only hiccup.
_FAILING_SECONDS: Final = 10.0


def check_health(buffer: BufferManager, parts: Mapping[str, str | None] = _NO_PARTS) -> Health:
    """Whether `buffer` can take events, with the reasons where something is wrong.

    parts: of the program around it, as `Parts` gives them.
    """
    stats = buffer.stats()
    unready: list[str] = []
    degraded: list[str] = []
    if buffer.closing:
        unready.append("the buffer is closed" if stats.closed else "the buffer is closing")
    if buffer.config.when_full in (WhenFull.REJECT, WhenFull.BLOCK):
        levels = buffer.config.flow_control.priority_levels
        for priority, lane in stats.lanes.items():
            if priority > levels:
                continue  # it takes nothing, full or not
            if lane.used_bytes >= _FULL * lane.capacity_bytes:
                found = unready if priority <= Priority.NORMAL else degraded
                found.append(
                    f"lane {priority} is full: {lane.used_bytes:,} of {lane.capacity_bytes:,} bytes"
                )
    if stats.circuit_breaker.state not in (State.CLOSED, State.DISABLED):
        state = stats.circuit_breaker.state.value.replace("_", " ")
        degraded.append(f"the circuit is {state}: the sink is not, or hardly, called")
    delivery = stats.delivery
    if delivery is not None and delivery.error is not None:
        degraded.append(f"delivery to {delivery.sink} has ended: {delivery.error}")
    elif delivery is not None and delivery.failing_for >= _FAILING_SECONDS:
        seconds, error = delivery.failing_for, delivery.last_error
        degraded.append(f"the sink {delivery.sink} has failed for {seconds:,.0f} s: {error}")
    if stats.backpressure_active:
        pressure = stats.pressure
        degraded.append(
            f"backpressure: {pressure.signal} is {pressure.value:.3g}, above {pressure.threshold:g}"
        )
    if stats.flow_control.emergency:
        rate = stats.flow_control.failure_rate
        degraded.append(f"emergency mode: {rate:.0%} of what the sink was given failed")
    degraded += _ended(parts)
    return _health(not unready, unready + degraded)


def check_all(
    buffers: Mapping[str, BufferManager], parts: Mapping[str, str | None] = _NO_PARTS
) -> Health:
    """The same of several buffers together: unready where one of them is, as lines go
    to all of them.
    """
    found = {name: check_health(buffer) for name, buffer in buffers.items()}
    reasons = [f"{name}: {reason}" for name, one in found.items() for reason in one.reasons]
    return _health(all(one.ready for one in found.values()), reasons + _ended(parts))


def _health(ready: bool, reasons: list[str]) -> Health:
    status = "unready" if not ready else "degraded" if reasons else "ok"
    texts = [as_text(one) for one in reasons]
    return Health(status=status, live=True, ready=ready, reasons=texts)  # type: ignore[arg-type]


def _ended(parts: Mapping[str, str | None]) -> list[str]:
    return [f"{name} has ended: {error}" for name, error in parts.items() if error is not None]
