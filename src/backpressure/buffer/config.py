"""What a buffer is made of: one frozen config, with one field for each policy's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from enum import Enum

from backpressure.base.errors import ConfigError
from backpressure.base.validation import as_member, check_bool, check_fields, check_kind
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig
from backpressure.policies.backpressure_monitor import BackpressureMonitorConfig
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.policies.flow_control_manager import FlowControlConfig
from backpressure.spill.config import SpillConfig

__all__ = ["BufferConfig", "Durability", "WhenFull"]

# What a ring of messages can be: 64 GiB.
_MAX_LANE_BYTES = 1 << 36
_MIN_LANE_BYTES = 4096


# A single bad batch is tried every few seconds, and costs next to nothing.
_LONGEST_BACKOFF = 5.0
# A day: a longer pause is a mistake in the unit.
_LONGEST_SECONDS = 86_400.0
# A batch of ordinary size takes as long as that, and what is older than ten years is
# never dropped.
_SHORTEST_AGE, _LONGEST_AGE = 0.001, 10 * 366 * 86_400.0


class WhenFull(Enum):
    """What becomes of an event whose lane is full."""

    #: The call waits for room: as long as its `timeout` says, and as long as needed
    #: where none is given.
    BLOCK = "block"
    #: The call returns; its Admission says how many were accepted and why not more.
    REJECT = "reject"
    #: The oldest events of the same lane that no consumer holds are dropped and
    #: counted.
    DROP_OLDEST = "drop_oldest"
    #: Events of the least urgent lane are dropped and counted. Needs the disk tier,
    #: where lanes share their room.
    DROP_LOWEST_PRIORITY = "drop_lowest_priority"


class Durability(Enum):
    """Which faults an accepted event survives, for a buffer with a directory."""

    #: The death of the process.
    PROCESS = "process"
    #: Power loss, except for the last `sync_interval` seconds.
    INTERVAL = "interval"
    #: Power loss.
    COMMIT = "commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """Everything about a buffer that can be chosen; each field has a default that
    works.

    directory: where accepted events outlive the process. None: in memory only, and lost
        with the process. One that was made with more priorities than this config has
        delivers what their lanes hold, and takes nothing for them.
    lane_bytes: memory of each lane, of which there are `flow_control.priority_levels`;
        rounded up to a power of two, and touched only as it is used. In a directory its
        file is allocated in full. See lane_size.py for how to choose it.
    max_batch_bytes: a batch is closed at this many bytes, however few events that are
        (a single larger one comes alone).
    when_full: what becomes of an event whose lane is full: a WhenFull, or its value as
        text ("block").
    durability: which faults what was accepted survives; for a buffer with a directory.
        A Durability, or its value as text.
    sync_interval: seconds between two syncs of the disk, with INTERVAL and COMMIT; an
        add under COMMIT waits for the next one.
    max_disk_bytes: all files of the disk tier together, dead letters and damaged files
        included; the rings (`lane_bytes` for each lane) are not counted. None: no
        limit. What makes an fsync that failed good again may be over it for a moment.
    max_dead_letters, max_dead_letter_bytes: of dead letters; where there are more, the
        oldest are forgotten, which is counted (`dead_letters_lost`) and logged. None: a
        million, and 1 GiB or a quarter of max_disk_bytes, with a directory; 10,000, and
        16 MiB, in memory.
    ring_checksums: whether what stays in a lane's ring for some hundredths of a second
        gets checksums there, for a buffer with a directory: what was in memory when the
        power went is then delivered as far as it reached the disk whole, checksums
        included. Else it is lost as a whole.
    spill: the disk tier's own config.
    max_age: seconds after which an event is dropped (reason "age") instead of
        delivered, also one that failed and waits to be tried again; None: never. What a
        consumer has is its own. A five-hundredth more may pass (10 ms at least). After
        a restart, what was on disk is as old as the youngest event of its block, by the
        system's clock, and what was in memory counts from the start.
    max_attempts: of a single event that the sink cannot stand, before it becomes a dead
        letter; None: it is tried for ever. A failure counts only if the sink has taken
        something else since the failure before, so an outage counts against nothing; a
        batch is halved after three of them, or as many as this.
    retry_backoff, max_retry_backoff: seconds before a nacked batch goes out again:
        doubled from one attempt to the next. None: up to 5 s; but while nothing
        succeeds, no longer than lets the breaker see enough failures within its window
        to open.
    circuit_breaker, monitor, batching, flow_control: the policies' own configs. What
        the breaker's leaves open (None) is said here: `law="sequential"`, as a flaky
        sink is better than none, and `canary=True`, as what waits for the sink's return
        grows older.
    """

    directory: str | os.PathLike[str] | None = None
    # 280,000 access-log lines, or half a minute of 10,000 a second.
    lane_bytes: int = 64 * 1024 * 1024
    # Large enough for 50,000 lines of an access log; small enough that a sink can take
    # it whole.
    max_batch_bytes: int = 16 * 1024 * 1024
    when_full: WhenFull = WhenFull.REJECT
    durability: Durability = Durability.PROCESS
    sync_interval: float = 0.005
    max_age: float | None = None
    max_attempts: int | None = 8
    max_disk_bytes: int | None = None
    max_dead_letters: int | None = None
    max_dead_letter_bytes: int | None = None
    ring_checksums: bool = True
    spill: SpillConfig = field(default_factory=SpillConfig)
    retry_backoff: float = 0.01
    max_retry_backoff: float | None = None
    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    monitor: BackpressureMonitorConfig = field(default_factory=BackpressureMonitorConfig)
    batching: AdaptiveBatchConfig = field(default_factory=AdaptiveBatchConfig)
    flow_control: FlowControlConfig = field(default_factory=FlowControlConfig)

    def __post_init__(self) -> None:
        check_fields(self, int, _MIN_LANE_BYTES, _MAX_LANE_BYTES, "lane_bytes")
        check_fields(self, int, 1, _MAX_LANE_BYTES, "max_batch_bytes")
        check_fields(self, float, 0.0, _LONGEST_SECONDS, "sync_interval", "retry_backoff")
        if self.max_retry_backoff is not None:
            check_fields(self, float, 0.0, _LONGEST_SECONDS, "max_retry_backoff")
        if self.longest_backoff < self.retry_backoff:
            raise ConfigError(
                "max_retry_backoff",
                f"must be at least retry_backoff ({self.retry_backoff}), "
                f"not {self.max_retry_backoff}",
            )
        for name, kind in (("when_full", WhenFull), ("durability", Durability)):
            object.__setattr__(self, name, as_member(name, getattr(self, name), kind))
        check_bool(self, "ring_checksums")
        check_kind(self, CircuitBreakerConfig, "circuit_breaker")
        breaker = self.circuit_breaker
        if breaker.law is None or breaker.canary is None:
            breaker = replace(
                breaker,
                law="sequential" if breaker.law is None else breaker.law,
                canary=True if breaker.canary is None else breaker.canary,
            )
            object.__setattr__(self, "circuit_breaker", breaker)
        check_kind(self, BackpressureMonitorConfig, "monitor")
        check_kind(self, AdaptiveBatchConfig, "batching")
        check_kind(self, FlowControlConfig, "flow_control")
        check_kind(self, SpillConfig, "spill")
        if self.max_age is not None:
            check_fields(self, float, _SHORTEST_AGE, _LONGEST_AGE, "max_age")
        if self.max_attempts is not None:
            check_fields(self, int, 1, 1 << 30, "max_attempts")
        if self.max_disk_bytes is not None:
            check_fields(self, int, 1 << 20, 1 << 60, "max_disk_bytes")
        if self.max_dead_letters is not None:
            check_fields(self, int, 1, 1 << 40, "max_dead_letters")
        if self.max_dead_letter_bytes is not None:
            least = 1 << 10 if self.directory is None else 1 << 18
            check_fields(self, int, least, 1 << 60, "max_dead_letter_bytes")
        if self.directory is None:
            self._refuse_disk_tier()
        elif not isinstance(self.directory, (str, os.PathLike)) or not os.fspath(self.directory):
            raise ConfigError(
                "directory",
                f"must be a path, or None for a buffer in memory only, not {self.directory!r}",
            )

    @property
    def longest_backoff(self) -> float:
        """What `max_retry_backoff` comes to, in seconds, while something succeeds."""
        return (
            self.max_retry_backoff
            if self.max_retry_backoff is not None
            else max(_LONGEST_BACKOFF, self.retry_backoff)
        )

    @property
    def effective_max_dead_letters(self) -> int:
        """What `max_dead_letters` comes to."""
        if self.max_dead_letters is not None:
            return self.max_dead_letters
        return 10_000 if self.directory is None else 1_000_000

    @property
    def effective_max_dead_letter_bytes(self) -> int:
        """What `max_dead_letter_bytes` comes to; no more than a quarter of
        max_disk_bytes.
        """
        wanted = self.max_dead_letter_bytes
        if self.directory is None:
            return 16 << 20 if wanted is None else wanted
        most = 1 << 30 if wanted is None else wanted
        return most if self.max_disk_bytes is None else min(most, self.max_disk_bytes // 4)

    def check_disk_room(self) -> None:
        """ConfigError where events would be accepted that the disk tier never takes.

        Not said of a config by itself: `forebay serve` chooses lane_bytes afterwards.
        """
        most = self.max_disk_bytes
        if most is None or self.durability is Durability.PROCESS:
            return
        if most < 2 * self.lane_bytes:
            raise ConfigError(
                "max_disk_bytes",
                f"must be twice lane_bytes ({self.lane_bytes:,}) at least, not {most:,}: with "
                f"{self.durability.name} all that a lane accepts is written to disk",
            )

    def _refuse_disk_tier(self) -> None:
        """ConfigError for a promise that a buffer in memory does not keep."""
        for name, value, default in (
            ("durability", self.durability, Durability.PROCESS),
            ("max_disk_bytes", self.max_disk_bytes, None),
        ):
            if value != default:
                raise ConfigError(name, f"needs a directory: give one, or leave it {default!r}")
        if self.when_full is WhenFull.DROP_LOWEST_PRIORITY:
            raise ConfigError(
                "when_full",
                "DROP_LOWEST_PRIORITY needs a directory: in memory every lane has room of its "
                "own, and what another one drops makes no room; use DROP_OLDEST, REJECT or BLOCK",
            )
