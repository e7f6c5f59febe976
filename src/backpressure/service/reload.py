"""Reload: puts in force what can change while the service runs.

TUNABLES is the one list of such settings. `reload_plan` tells them apart from what
needs a restart, `put_in_force` applies them, and `config_in_force` carries them into
the config in force, so that the next reload compares with what really runs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backpressure.base.errors import BackpressureError
from backpressure.base.events import Tuned
from backpressure.buffer_manager import BufferManager
from backpressure.service.config import ServeConfig
from backpressure.service.load import Mistakes

if TYPE_CHECKING:
    from backpressure.service.service import Service

__all__ = [
    "TUNABLES",
    "Tunable",
    "config_in_force",
    "differences",
    "put_in_force",
    "reload_plan",
    "tunable_titles",
]

T = TypeVar("T")

_log = logging.getLogger("backpressure")


@dataclass(frozen=True, slots=True)
class Tunable:
    """A setting that a reload changes."""

    title: str  #: for people
    #: Puts a value in force. Returns its audit event where there is one.
    apply: Callable[[BufferManager, Any], Tuned | None]


def _apply_nothing(buffer: BufferManager, value: object) -> None:
    """For a setting that is read from the config in force whenever it is needed."""


#: By the name in the configuration; everything else needs a restart.
TUNABLES: Final[dict[str, Tunable]] = {
    "buffer.flow_control.max_events_per_second": Tunable(
        "rate", lambda buffer, value: buffer.adjust_flow_control_rate(value, by="reload")
    ),
    "buffer.flow_control.burst_size": Tunable(
        "burst", lambda buffer, value: buffer.adjust_burst_size(value, by="reload")
    ),
    "buffer.batching.initial_batch_size": Tunable(
        "batch size", lambda buffer, value: buffer.adjust_batch_size(value, by="reload")
    ),
    "service.log_level": Tunable("log level", lambda buffer, value: _log.setLevel(value.upper())),
    "service.drain_timeout": Tunable("drain timeout", _apply_nothing),
}


def tunable_titles() -> str:
    """The titles in words, as "rate, burst and log level"."""
    *titles, last = (tunable.title for tunable in TUNABLES.values())
    return f"{', '.join(titles)} and {last}"


def reload_plan(old: ServeConfig, new: ServeConfig) -> tuple[dict[str, Any], list[str]]:
    """The values that a reload can put in force, and the names that need a restart."""
    changed = differences(old, new)
    now = {name: value for name, (_, value) in changed.items() if name in TUNABLES}
    return now, [name for name in changed if name not in TUNABLES]


def put_in_force(service: Service, new: ServeConfig) -> tuple[list[str], list[str]]:
    """Change what can change while `service` runs.

    Returns the names of the settings that were changed, and of those that need a
    restart. Mistakes where one is refused; those before it are in force.
    """
    old = service.config
    same = [one.name for one in old.sinks] == [one.name for one in new.sinks]
    if not same or old.is_single != new.is_single:
        # What belongs to which of the running sinks cannot be told.
        changed, waiting = put_in_force(service, dataclasses.replace(new, sink=old.sink))
        return changed, [*waiting, "sink"]
    now, later = reload_plan(old, new)
    if not old.is_single:
        # The table [buffer] is what the sinks' own begin with; it is none's.
        now = {name: value for name, value in now.items() if not name.startswith("buffer.")}
        later = [name for name in later if not name.startswith(("buffer.", "sink"))]
    changes = [(name, "", value, service.buffer) for name, value in now.items()]
    if not old.is_single:
        for sink, other in zip(old.sinks, new.sinks, strict=True):
            place = f"sink.{sink.name}."
            for name, (_, value) in differences(sink, other).items():
                if name in TUNABLES:
                    changes.append((name, place, value, service.buffer_of(sink.name)))
                else:
                    later.append(place + name)
    for name, place, value, buffer in changes:
        if name == "buffer.batching.initial_batch_size":
            _check_batch_size(place + name, value, buffer)
    done: list[str] = []
    try:
        for name, place, value, buffer in changes:
            try:
                TUNABLES[name].apply(buffer, value)
            except (BackpressureError, ValueError) as error:
                raise Mistakes([f"{place}{name}: {error}"]) from None
            done.append(place + name)
    finally:
        # Also where one was refused: those before it are in force, and the next reload
        # compares with what runs.
        service.config = config_in_force(old, new, done)
    service.reopen()
    return done, later


def _check_batch_size(name: str, size: int, buffer: BufferManager) -> None:
    """Mistakes where it is within the bounds of the new file, but not of the running
    buffer: those need a restart. Refused before anything is changed.
    """
    batching = buffer.config.batching
    if not batching.min_batch_size <= size <= batching.max_batch_size:
        bounds = f"{batching.min_batch_size:,} to {batching.max_batch_size:,}"
        raise Mistakes([f"{name}: must be from {bounds}, until a restart"])


def config_in_force(
    old: ServeConfig, new: ServeConfig, names: Collection[str] | None = None
) -> ServeConfig:
    """The old config, with the new one's tunables: all, or those of these names, which
    begin with "sink.NAME." for a setting of one of several sinks.
    """
    common = TUNABLES if names is None else [one for one in names if not one.startswith("sink.")]
    changed = _with_tunables(old, new, "", common)
    if not isinstance(old.sink, tuple) or not isinstance(new.sink, tuple):
        return changed
    sinks = tuple(
        _with_tunables(one, other, "", TUNABLES if names is None else _own(names, one.name))
        for one, other in zip(old.sink, new.sink, strict=True)
    )
    return dataclasses.replace(changed, sink=sinks)


def _own(names: Collection[str], sink: str) -> list[str]:
    place = f"sink.{sink}."
    return [name.removeprefix(place) for name in names if name.startswith(place)]


def _with_tunables(old: T, new: T, where: str, names: Collection[str]) -> T:
    changes = {}
    # All fields of a config at once: its checks may weigh one against another.
    for one in dataclasses.fields(old):  # type: ignore[arg-type]
        name = f"{where}{one.name}"
        if name in names:
            changes[one.name] = getattr(new, one.name)
        elif any(other.startswith(f"{name}.") for other in names):
            changes[one.name] = _with_tunables(
                getattr(old, one.name), getattr(new, one.name), f"{name}.", names
            )
    return dataclasses.replace(old, **changes)  # type: ignore[type-var]


def differences(old: object, new: object, where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two configs, by dotted name, as (old, new).

    A config within a config is compared field by field.
    """
    if type(old) is type(new) and dataclasses.is_dataclass(old) and not isinstance(old, type):
        found: dict[str, tuple[Any, Any]] = {}
        for one in dataclasses.fields(old):
            name = f"{where}.{one.name}" if where else one.name
            found |= differences(getattr(old, one.name), getattr(new, one.name), name)
        return found
    return {} if old == new else {where: (old, new)}
