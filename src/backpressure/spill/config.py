"""What can be chosen about the disk tier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from backpressure.base.errors import ConfigError
from backpressure.base.validation import check_fields

__all__ = ["MAX_BLOCK_BYTES", "SpillConfig", "within"]

_KIB = 1024
_MIB = 1024 * 1024

#: Payload of a block of several events, at most: a reader takes no larger one for real.
MAX_BLOCK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """The disk tier of one lane; each field has a default that works.

    segment_bytes: at this size a file is closed and the next begun. Space comes back a
        whole file at a time.
    block_bytes: payload of a block, before compression. Events are compressed,
        checksummed and lost to damage a block at a time; a larger event has a block of
        its own.
    max_disk_bytes: all files together take no more than this; None: until the disk is
        full.
    slowest_level, fastest_level: bounds for the zstd level, which falls as the pressure
        rises. With a fastest_level of None, the highest pressure stores events without
        compression.
    reserve_bytes: kept allocated, so that acks can be recorded on a full disk.
    ack_record_bytes: size of one slot of the ack record; each range acked out of turn
        takes 24 bytes of it.
    max_quarantine_bytes: damaged files that are kept aside for `forebay repair` and
        `export`, the oldest deleted first.
    """

    # 100 GB are then 1,500 files: an index of half a megabyte, and about 30 ms to read
    # their headers.
    segment_bytes: int = 64 * _MIB
    # Log lines take 19 % less room than with 64 KiB. 1 MiB would save another 10 %, and
    # a flipped bit cost four times as much.
    block_bytes: int = 256 * _KIB
    max_disk_bytes: int | None = None
    # With blocks of this size level 3 gains nothing on logs: 0.3 % for twice the time
    # on an access log, and JSON becomes larger.
    slowest_level: int = 1
    fastest_level: int | None = None
    reserve_bytes: int = _MIB
    ack_record_bytes: int = 4 * _KIB
    max_quarantine_bytes: int = 256 * _MIB

    def __post_init__(self) -> None:
        check_fields(self, int, 4 * _KIB, 1 << 40, "segment_bytes")
        check_fields(self, int, 256, MAX_BLOCK_BYTES, "block_bytes")
        if self.max_disk_bytes is not None:
            check_fields(self, int, 64 * _KIB, 1 << 60, "max_disk_bytes")
        check_fields(self, int, -100, 19, "slowest_level")
        if self.fastest_level is not None:
            check_fields(self, int, -100, 19, "fastest_level")
            if self.fastest_level > self.slowest_level:
                raise ConfigError(
                    "fastest_level",
                    f"must be at most slowest_level ({self.slowest_level}), "
                    f"not {self.fastest_level}",
                )
        check_fields(self, int, 0, 1 << 40, "reserve_bytes", "max_quarantine_bytes")
        check_fields(self, int, 512, 64 * _MIB, "ack_record_bytes")
        if self.ack_record_bytes % 512:
            raise ConfigError(
                "ack_record_bytes",
                f"must be whole sectors of 512 bytes, not {self.ack_record_bytes}",
            )


def within(config: SpillConfig, nbytes: int, stores: int = 1) -> SpillConfig:
    """`config` with what is kept beside the events made small enough for so much room,
    which so many stores share: empty they take a quarter of it at most, and damaged
    files another quarter.
    """
    share = nbytes // stores
    return replace(
        config,
        # Room comes back a whole file at a time. Yet a file costs several fsyncs.
        segment_bytes=max(4 * _KIB, min(config.segment_bytes, nbytes // 8)),
        reserve_bytes=min(config.reserve_bytes, share // 16),
        # It has two slots.
        ack_record_bytes=max(512, min(config.ack_record_bytes, share // 16 // 512 * 512)),
        max_quarantine_bytes=min(config.max_quarantine_bytes, share // 4),
    )
