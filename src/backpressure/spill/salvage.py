"""The state of a lane's files without opening its store, and a repair.

The documented name of `spill.offline.inspect`.
"""

from backpressure.spill.offline.inspect import (
    BlockReport,
    BlockState,
    SegmentReport,
    export_lane,
    inspect_lane,
    repair_lane,
)

__all__ = [
    "BlockReport",
    "BlockState",
    "SegmentReport",
    "export_lane",
    "inspect_lane",
    "repair_lane",
]
