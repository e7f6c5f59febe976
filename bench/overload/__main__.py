"""`python -m bench.overload`, from the root of the checkout."""

from __future__ import annotations

import sys

from bench.overload.run import main

sys.exit(main())
