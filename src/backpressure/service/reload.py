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
    now, later = reload_plan(service.config, new)
    batching = service.buffer.config.batching
    size = now.get("buffer.batching.initial_batch_size", batching.initial_batch_size)
    if not batching.min_batch_size <= size <= batching.max_batch_size:
        # It is within the bounds of the new file, but those need a restart. Refused
        # before anything is changed.
        bounds = f"{batching.min_batch_size:,} to {batching.max_batch_size:,}"
        raise Mistakes(
            [f"buffer.batching.initial_batch_size: must be from {bounds}, until a restart"]
        )
    done: list[str] = []
    try:
        for name, value in now.items():
            try:
                TUNABLES[name].apply(service.buffer, value)
            except (BackpressureError, ValueError) as error:
                raise Mistakes([f"{name}: {error}"]) from None
            done.append(name)
    finally:
        # Also where one was refused: those before it are in force, and the next reload
        # compares with what runs.
        service.config = config_in_force(service.config, new, done)
    service.reopen()
    return done, later


def config_in_force(
    old: ServeConfig, new: ServeConfig, names: Collection[str] | None = None
) -> ServeConfig:
    """The old config, with the new one's tunables: all, or those of these names."""
    return _with_tunables(old, new, "", TUNABLES if names is None else names)


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
