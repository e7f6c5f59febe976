"""Other processes, which import what this one does: the same package, and `tests`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

__all__ = [
    "ended_well",
    "environment",
    "forebay_command",
    "forked",
    "in_child",
    "python",
    "run_python",
]

# A child that takes longer hangs (seconds).
_HUNG = 30


def forked(work: Callable[[], object]) -> int:
    """Start a child that does `work` and exits with 0, or with 1 where that raises.

    Nothing of pytest runs at its end. Returns its pid, for `ended_well`.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(_HUNG)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    """Wait for a child that `forked` started: whether it raised nothing."""
    return os.waitpid(pid, 0)[1] == 0


def in_child(work: Callable[[], object]) -> None:
    """Run it in a forked child that dies right after, without any tidying up."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def python(code: str, *arguments: str | Path) -> list[str]:
    """The command that runs a piece of Python; give it `environment()`."""
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def forebay_command(*arguments: str | Path) -> list[str]:
    """The command `forebay`, whose script need not be on the PATH.

    Give it `environment()`.
    """
    return [sys.executable, "-m", "backpressure", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """The variables of this process, with all that it has on its path.

    Under pytest PYTHONPATH alone does not say that.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, **more}


def run_python(
    code: str, *arguments: str | Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python to its end, within a minute; what it writes is caught."""
    return subprocess.run(
        python(code, *arguments),
        env=environment(),
        **{"capture_output": True, "text": True, "timeout": 60, **options},
    )
