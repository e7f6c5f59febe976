"""What the tests of RingBuffer share."""

from __future__ import annotations

import sys

#: As threads under a GIL use it; as those without one do; as processes do.
MODES = ["alone", "exchanges"] + ["shared"] * (sys.platform == "linux")
