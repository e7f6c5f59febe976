"""`python -m backpressure` is the command `forebay`."""

from __future__ import annotations

import sys

from backpressure.cli import main

if __name__ == "__main__":
    sys.exit(main())
