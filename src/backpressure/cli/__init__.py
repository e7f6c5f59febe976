"""The command `forebay`.

    forebay pump SOURCE... --to SINK     carry lines through a buffer
    forebay serve --config FILE          the same as a service, described by a TOML file
    forebay top URL|DIR                  watch one
    forebay inspect DIR                  what a buffer's directory holds
    forebay verify DIR                   check every checksum in it
    forebay repair DIR                   put damage aside
    forebay export DIR                   its events, as lines or records
    forebay dlq list|replay|purge DIR    its dead letters
    forebay bench                        measure this machine

Each sub-command is a module with `main(argv) -> int`, imported only when it is called:
a command starts as fast as what it imports.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType

from backpressure.base import standard_streams
from backpressure.base.version import version
from backpressure.base.wording import reason
from backpressure.cli.common import BY_SIGNAL, FAILED, OK, USAGE, say

__all__ = ["main"]

_COMMANDS = {
    "pump": (
        "backpressure.cli.pump",
        "carry lines from files or stdin to a sink, at least once, in order",
    ),
    "serve": (
        "backpressure.cli.serve",
        "carry lines from files and sockets to a sink, as a service that a TOML file describes",
    ),
    "top": ("backpressure.cli.top", "watch a running buffer, or the directory of any"),
    "inspect": ("backpressure.cli.disk.inspect", "show what a buffer's directory holds"),
    "verify": ("backpressure.cli.disk.verify", "check every checksum in a buffer's directory"),
    "repair": ("backpressure.cli.disk.repair", "put what is damaged in a buffer's directory aside"),
    "export": (
        "backpressure.cli.disk.export",
        "write the events in a buffer's directory as lines or records",
    ),
    "dlq": ("backpressure.cli.disk.dlq", "list, replay or purge the dead letters of a buffer"),
    "bench": (
        "backpressure.cli.bench",
        "measure the throughput of this machine beside its yardsticks",
    ),
}

# What a print on a full disk raises, without a file's name.
_STDOUT_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is not None:
        return _run(arguments)
    standard_streams.fill()
    if os.getpid() == 1:
        # The first process of a container gets no signal that it has no handler for.
        # Until its command has its own, nothing is open that would have to be closed.
        signal.signal(signal.SIGTERM, _end_at_once)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        return BY_SIGNAL + int(getattr(signal, "SIGPIPE", 13))  # as `forebay … | head`
    except MemoryError:
        say("there is not enough memory: give it more, or make lanes and batches smaller")
        return FAILED
    except OSError as error:
        if error.filename is not None or error.errno not in _STDOUT_FULL:
            raise
        _silence_stdout()
        say(f"stdout: {reason(error)}")
        return FAILED
    return code


def _end_at_once(number: int, frame: FrameType | None) -> None:
    raise SystemExit(BY_SIGNAL + number)


def _silence_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes stdout at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in _COMMANDS:
        module = import_module(_COMMANDS[arguments[0]][0])
        return int(module.main(arguments[1:]))
    if arguments[:1] == ["--version"]:
        print(f"forebay {version()}")
        return OK
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return OK
    if arguments:
        say(f"unknown command {arguments[0]!r}")
    with suppress(OSError):
        print(_usage(), file=sys.stderr, flush=True)
    return USAGE


def _usage() -> str:
    lines = [f"  {name:<8}{text}" for name, (_, text) in _COMMANDS.items()]
    closing = "`forebay COMMAND --help` explains each; `forebay --version` tells the version."
    return "\n".join(["usage: forebay COMMAND ...", "", *lines, "", closing])
