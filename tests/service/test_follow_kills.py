"""`forebay serve` killed while the files it follows are rotated: nothing is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment, forebay_command
from tests.support.threads import until

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread"),
    pytest.mark.platform,
]


def test_kills_and_rotations_lose_no_line(tmp_path: Path, in_full: bool) -> None:
    rng = random.Random(1 if os.environ.get("CI") else None)
    log, out, state = tmp_path / "a.log", tmp_path / "out", tmp_path / "state"
    config = tmp_path / "c.toml"
    config.write_text(
        f'[[source]]\ntype = "file"\npath = "{log}"\nstart = "beginning"\n'
        f'[sink]\ntype = "file"\npath = "{out}"\n[service]\nstate_file = "{state}"\n'
    )
    written: list[bytes] = []

    def append(count: int) -> None:
        lines = [b"%06d" % number for number in range(len(written), len(written) + count)]
        with log.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))
        written.extend(lines)

    def delivered() -> set[bytes]:
        return set(out.read_bytes().splitlines()) if out.exists() else set()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            forebay_command("serve", "--config", config),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    append(100)
    for life in range(8 if in_full else 2):
        with start() as process:
            # What came before its first save is not known to the next one.
            until(lambda: state.exists() and set(written[:100]) <= delivered())
            for number in range(rng.randrange(1, 4)):
                append(rng.randrange(1, 3000))
                log.rename(f"{log}.{life}.{number}")
                append(rng.randrange(1, 300))
            until(lambda: bool(delivered() & set(written[-3000:])))
            process.kill()
        for number in range(rng.randrange(3)):
            log.rename(f"{log}.{life}.9{number}")
            append(rng.randrange(1, 300))
    with start() as process:
        append(10)  # else all may be there before it has begun
        until(lambda: set(written) <= delivered(), seconds=60)
        process.terminate()
        assert process.stderr is not None
        error = process.stderr.read().decode()
    assert process.returncode == 0, error
    assert delivered() == set(written), sys.executable
