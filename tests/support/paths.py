"""Where things lie in a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DATA", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
#: Real logs, where the machine has them: a test that wants them falls back on lines of
#: its own.
DATA = ROOT.parent / "shared" / "data"
