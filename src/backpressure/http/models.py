"""The models of requests, which are checked, and of responses.

The models of `GET /buffer/stats` and its like are made from the library's own snapshots
(`model_of`), so that a field that is added to a snapshot is in the response and in the
OpenAPI document at once. JSON has no infinity: it is written as null.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from backpressure.base.priority import PRIORITY_LEVELS, default_priority
from backpressure.base.reasons import RejectReason
from backpressure.base.wording import as_text
from backpressure.buffer.stats import BufferStats
from backpressure.policies.backpressure_monitor import Pressure
from backpressure.policies.flow_control_manager import FlowControlMetrics

__all__ = [
    "LONGEST_WAIT",
    "BackpressureReply",
    "BatchSizeChange",
    "Change",
    "FlowControlReply",
    "Health",
    "HealthQuery",
    "IngestQuery",
    "IngestReply",
    "Nothing",
    "Problem",
    "RateChange",
    "SinkHealthQuery",
    "SinksReply",
    "StatsReply",
    "ingest_query",
    "model_of",
    "plain",
]

#: Seconds that one upload may wait for room: below what proxies commonly bear.
LONGEST_WAIT: Final = 30.0


@cache
def model_of(kind: type) -> type[BaseModel]:
    """The pydantic model of a dataclass, as `plain` writes it."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {
        field.name: (_type_of(hints[field.name]), ...) for field in dataclasses.fields(kind)
    }
    return create_model(kind.__name__, __doc__=(kind.__doc__ or "").split("\n\n")[0], **fields)


def _type_of(hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is float:
        return float | None  # null: infinite
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return model_of(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)]
    if origin in (Union, types.UnionType):
        return reduce(or_, [_type_of(arg) for arg in args])
    if origin is tuple:
        return list[reduce(or_, {_type_of(arg) for arg in args if arg is not ...})]  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[str, _type_of(args[1])]  # type: ignore[misc]
    return hint


def plain(value: Any) -> Any:
    """A snapshot as the values that JSON has, in UTF-8."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return as_text(value) if isinstance(value, str) else value


# ---------------------------------------------------------------- requests


class _Request(BaseModel):
    """Unknown fields are refused: a misspelt one must not look as if it had worked."""

    model_config = ConfigDict(extra="forbid")


class RateChange(_Request):
    """A new rate for flow control."""

    rate: float = Field(
        strict=True,
        ge=0,
        le=1e12,
        allow_inf_nan=False,
        description="events per second",
        examples=[50_000],
    )


class BatchSizeChange(_Request):
    """A new batch size; the adaptive law goes on from there."""

    size: int = Field(strict=True, ge=1, description="events", examples=[10_000])

    @field_validator("size", mode="before")
    @classmethod
    def _whole(cls, size: object) -> object:
        """5000.0 is an integer in JSON too."""
        return int(size) if isinstance(size, float) and size.is_integer() else size


class Nothing(_Request):
    """No body, or {}."""


class IngestQuery(_Request):
    """Where an upload goes, and how long it may wait."""

    priority: int
    timeout: float | None = Field(
        default=None,
        ge=0,
        le=LONGEST_WAIT,
        allow_inf_nan=False,
        description=(
            "seconds to wait for room or tokens; not given: 0, "
            f"or {LONGEST_WAIT:g} where the buffer blocks (`when_full`)"
        ),
    )


def ingest_query(levels: int = PRIORITY_LEVELS, *, named: bool = False) -> type[IngestQuery]:
    """IngestQuery for a buffer with that many priorities: the OpenAPI document has its
    bounds.

    named: whether it is one of several, so that `sink` says which.
    """
    others: dict[str, Any] = {"sink": (str | None, None)} if named else {}
    priority = Field(
        default=default_priority(levels),
        ge=1,
        le=levels,
        description=f"1, the most urgent, to {levels}",
    )
    return create_model(
        IngestQuery.__name__,
        __base__=IngestQuery,
        __doc__=IngestQuery.__doc__,
        priority=(int, priority),
        **others,
    )


class HealthQuery(_Request):
    """Which of two questions is asked."""

    probe: Literal["ready", "live"] = Field(
        default="ready",
        description="ready: can it take events? live: does the process answer? (then always 200)",
    )


class SinkHealthQuery(HealthQuery):
    """Which of two questions is asked, and of which sink."""

    sink: str | None = Field(default=None, description="not given: all of them")


# ---------------------------------------------------------------- responses


class Problem(BaseModel):
    """What was wrong with a request; it has changed nothing."""

    detail: str


class Change(BaseModel):
    """A change that is in force."""

    setting: Literal["flow_control_rate", "batch_size", "burst_size", "circuit_breaker"]
    old: float | str | None = Field(description="null: infinite")
    new: float | str


class IngestReply(BaseModel):
    """What became of an upload.

    Whatever the status: exactly the first `accepted` lines were accepted.
    """

    accepted: int = Field(description="lines accepted, always a prefix of the upload")
    rejected: int = Field(
        description="lines read and not accepted; what follows them was not looked at"
    )
    reason: RejectReason | Literal["invalid"] | None = Field(
        description=(
            "null where all was accepted; invalid: the upload itself is at fault, see detail"
        )
    )
    retry_after: float | None = Field(
        description="seconds after which a retry can succeed; 0: not known, null: never"
    )
    first_seq: int | None = Field(description="the lane's number of the first accepted line")
    consumed: int = Field(
        description="bytes of the unpacked upload that the accepted lines are: go on from there"
    )
    detail: str | None = Field(default=None, description="what was wrong, in words")


class Health(BaseModel):
    """Whether the buffer can take events, and what else is not as it should be."""

    status: Literal["ok", "degraded", "unready"]
    live: bool
    ready: bool
    reasons: list[str] = Field(description="empty where the status is ok")


class SinksReply(BaseModel):
    """The sinks that a request can be about."""

    sinks: list[str] = Field(description="empty where there is one, without a name")


StatsReply: Final = model_of(BufferStats)
FlowControlReply: Final = model_of(FlowControlMetrics)
BackpressureReply: Final = create_model(
    "Backpressure",
    __base__=model_of(Pressure),
    backpressure_seconds=(float, Field(description="under backpressure so far")),
    thresholds=(
        dict[str, float],
        Field(description="as configured, by signal; `threshold` is the one in force"),
    ),
)
