"""What the commands on directories refuse, and what their help says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


def test_what_is_no_buffer_is_refused_and_not_made(forebay: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        for command in (
            ("inspect",),
            ("verify",),
            ("repair", "--yes"),
            ("export",),
            ("dlq", "list"),
            ("dlq", "replay"),
        ):
            code, out, err = forebay(*command, tmp_path / name)
            assert (code, out) == (2, "")
            assert str(tmp_path / name) in err
    assert [one.name for one in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "repair", "export", "dlq list", "dlq replay", "dlq purge"]
)
def test_help_tells_the_exit_codes(forebay: Any, command: str) -> None:
    code, out, _ = forebay(*command.split(), "--help")
    assert (code, "exit codes:" in out) == (0, True)
    assert ("3    another process" in out) == (command in ("repair", "dlq replay", "dlq purge"))
