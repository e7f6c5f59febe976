"""Where a handler delivers to: a sink, a path, or logging handlers, also by name.

In a dictConfig the handlers are made in the order of their names. One that is named as
a target and is not made yet defers the handler that names it: logging.config makes that
one again when it has made all others.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from backpressure.sinks import Sink, open_sink

__all__ = ["SinkArgument", "Target", "open_target"]

#: Where batches go: a sink, or logging handlers that get a record for each line.
Target: TypeAlias = Sink | Sequence[logging.Handler]

#: What `BufferHandler(sink=)` takes.
SinkArgument: TypeAlias = (
    Sink | str | os.PathLike[str] | logging.Handler | Sequence[logging.Handler | str] | None
)

# logging.config defers a handler whose error has a cause with this text.
_DEFER: Final = "target not configured yet"


def open_target(sink: SinkArgument) -> Target | None:
    """The target that `sink` names: see `BufferHandler`."""
    if sink is None:
        return None
    if isinstance(sink, str):
        handler = _handler_named(sink)
        return (handler,) if handler is not None else open_sink(sink, append=True)
    if isinstance(sink, os.PathLike):
        return open_sink(os.fspath(sink), append=True)
    if isinstance(sink, logging.Handler):
        return (sink,)
    if isinstance(sink, Mapping):
        return (_configured_from(sink),)
    if isinstance(sink, (list, tuple)):
        # By index: the lists of logging.config convert "cfg://…" and "ext://…" there.
        return tuple(_handler_of(sink[index]) for index in range(len(sink)))
    if not isinstance(sink, Sink) or isinstance(sink, type):
        raise TypeError(f"sink must be a Sink, a path, or logging handlers, not {sink!r}")
    return sink


def _handler_of(one: object) -> logging.Handler:
    if isinstance(one, str):
        handler = _handler_named(one)
        if handler is None:
            raise ValueError(f"sink: no logging handler has the name {one!r}")
        return handler
    if isinstance(one, Mapping):
        return _configured_from(one)
    if not isinstance(one, logging.Handler):
        raise TypeError(f"sink: a sequence must hold logging handlers, not {one!r}")
    return one


def _handler_named(name: str) -> logging.Handler | None:
    """The handler of that name, or None. Raises what defers where it is to come."""
    running = _running_configuration()
    if running is not None and name in running.handlers:
        return running.handler(name)
    handlers: Mapping[str, logging.Handler] = logging._handlers  # type: ignore[attr-defined]
    return handlers.get(name)


def _configured_from(mapping: Mapping[Any, Any]) -> logging.Handler:
    """The handler for what `cfg://handlers.NAME` leads to before it is made."""
    running = _running_configuration()
    if running is not None:
        for name in running.handlers:
            if running.handlers[name] is mapping:
                return running.handler(name)
    raise TypeError(f"sink must be a Sink, a path, or logging handlers, not {dict(mapping)!r}")


class _Configuration(NamedTuple):
    """The dictConfig that is making a handler at this moment, in this thread."""

    #: By name: handlers, or what describes those that are not made yet.
    handlers: Mapping[str, Any]
    #: What described ours; logging.config has taken some of it out …
    config: dict[str, Any]
    #: … and needs it again if ours is deferred.
    whole: dict[str, Any]

    def handler(self, name: str) -> logging.Handler:
        handler = self.handlers[name]
        if handler is self.config:
            raise ValueError(f"sink: the handler {name!r} cannot be its own target")
        if not isinstance(handler, logging.Handler):
            self.config.update(self.whole)
            raise ValueError(f"sink: the handler {name!r} is not made yet") from TypeError(_DEFER)
        return handler


def _running_configuration() -> _Configuration | None:
    # A factory is told its arguments only: whether it runs within a dictConfig, and in
    # which, is to be seen from its callers.
    module = sys.modules.get("logging.config")
    frame = sys._getframe()
    while module is not None and frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name != "configure_handler":
            continue
        seen = frame.f_locals
        configurator, config = seen.get("self"), seen.get("config")
        if isinstance(configurator, module.DictConfigurator) and isinstance(config, dict):
            handlers = configurator.config.get("handlers", {})
            return _Configuration(handlers, config, seen.get("config_copy", {}))
    return None
