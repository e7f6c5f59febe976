"""Which buffer a request is about: the only one, or that of `?sink=name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import Depends, HTTPException, Request

from backpressure.buffer_manager import BufferManager

__all__ = ["Buffers", "Chosen", "document_sinks"]

_QUERY: Final = "sink"


class Buffers:
    """The buffers of one app: one without a name, or some by their sinks' names."""

    def __init__(self, buffers: BufferManager | Mapping[str, BufferManager]) -> None:
        #: Empty where there is one without a name.
        self.named: Final = dict(buffers) if isinstance(buffers, Mapping) else {}
        self._only: Final = None if isinstance(buffers, Mapping) else buffers

    def all(self) -> list[BufferManager]:
        """All of them; at least one."""
        return list(self.named.values()) if self._only is None else [self._only]

    @property
    def exported(self) -> BufferManager | Mapping[str, BufferManager]:
        """As `backpressure.metrics.Collector` takes them."""
        return self.named if self._only is None else self._only

    def choose(self, name: str | None) -> BufferManager:
        """The buffer by that name; HTTPException 404, which lists the names."""
        if self._only is not None:
            if name is None:
                return self._only
            raise HTTPException(404, "there is one sink, and it has no name: leave ?sink= away")
        if name in self.named:
            return self.named[name]
        what = "there are several sinks" if name is None else "there is no such sink"
        raise HTTPException(404, f"{what}: add ?sink= and one of {', '.join(self.named)}")


def _chosen(request: Request) -> BufferManager:
    buffers: Buffers = request.app.state.buffers
    return buffers.choose(request.query_params.get(_QUERY))


#: A parameter of a route: the buffer that the request is about.
Chosen = Annotated[BufferManager, Depends(_chosen)]


def document_sinks(document: dict[str, Any], names: list[str]) -> None:
    """Add the query `sink`, and its 404, to the routes of an OpenAPI document."""
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in document["paths"].items():
        if path in ("/metrics", "/buffer/sinks"):
            continue
        for operation in operations.values():
            parameter = {
                "name": _QUERY,
                "in": "query",
                "required": path != "/buffer/health",
                "schema": {"type": "string", "enum": names},
                "description": "of several sinks, whose buffer it is about",
            }
            others = [one for one in operation.get("parameters", ()) if one["name"] != _QUERY]
            operation["parameters"] = [*others, parameter]
            operation["responses"]["404"] = {
                "description": "There is no such sink; the message lists those that there are.",
                "content": problem,
            }
