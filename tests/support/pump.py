"""What the tests of `forebay pump` share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backpressure.cli import main
from tests.support.processes import forebay_command


class Run:
    """What one in-process call of the command did."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        capfd.readouterr()
        self.code = main(["pump", *map(str, arguments)])
        self.out, self.err = capfd.readouterr()

    def row(self, name: str) -> str:
        """A row of the closing table."""
        found = re.search(rf"^{name}  +(.*)$", self.err, re.MULTILINE)
        assert found, self.err
        return found[1]


def command(*arguments: str | Path) -> list[str]:
    return forebay_command("pump", *arguments)
