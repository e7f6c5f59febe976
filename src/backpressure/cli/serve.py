"""`forebay serve`: lines from files and sockets through a buffer to a sink, or several.

It runs as a service that one TOML file describes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from backpressure.base.errors import BackpressureError, ConfigError
from backpressure.base.wording import reason
from backpressure.cli.common import (
    BY_CTRL_C,
    BY_SIGNAL,
    FAILED,
    OK,
    USAGE,
    command_parser,
    noted_signals,
    say,
)
from backpressure.service.config import ServeConfig
from backpressure.service.explain import explain
from backpressure.service.load import Mistakes, load
from backpressure.service.reload import put_in_force, tunable_titles
from backpressure.service.service import Service
from backpressure.service.systemd import notify, watchdog_seconds
from backpressure.sources.open_files import raise_soft_limit

__all__ = ["main"]

_log = logging.getLogger("backpressure")

# The handler only leaves a note; this is how soon it is read.
_SIGNAL_SECONDS = 0.1
# How often positions are committed and saved (seconds): what was delivered since then
# comes twice after a crash.
_SAVE_SECONDS = 1.0

_SIGNALS = f"""\
signals:
  SIGTERM, SIGINT  end: sources stop, what is buffered is delivered for up to
                   service.drain_timeout seconds; a second one ends it at once
  SIGHUP           read the configuration again: {tunable_titles()} change at once,
                   what needs a restart is named, a sink that is a file is opened anew

"""
_CODES = {
    OK: "everything that came in was delivered (after a signal as well)",
    FAILED: "something could not be opened, a source or the sink failed for good, or events\n"
    "were not delivered",
    USAGE: "the configuration is wrong: nothing was opened",
    BY_CTRL_C: "ended by Ctrl-C (SIGINT), 143 by SIGTERM, and events were not delivered",
}


def main(argv: Sequence[str]) -> int:
    """Run `forebay serve` with these arguments; returns the exit code."""
    parser = command_parser(
        "serve",
        "Carry lines from files and sockets through buffers to sinks, as one TOML file says.",
        _CODES,
        before=_SIGNALS,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the TOML file; FOREBAY_TABLE__KEY variables go over it",
    )
    parser.add_argument(
        "--check", action="store_true", help="only say what is wrong with it, or what it does"
    )
    parser.add_argument(
        "--print-config-reference",
        action=_PrintReference,
        nargs=0,
        help="print every key of the file, as docs/configuration.md",
    )
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
    except OSError as error:
        say(reason(error, options.config))
        return USAGE
    except Mistakes as error:
        for line in error.lines:
            say(f"{options.config}: {line}")
        return USAGE
    if options.check:
        print(explain(config))
        return OK
    _log_to_stderr(config.service.log_level)
    raise_soft_limit()
    # Before anything is opened, which takes long where a large directory is recovered:
    # the first process of a container gets no signal that it has no handler for.
    with noted_signals("SIGINT", "SIGTERM", "SIGHUP") as signals:
        return _serve(options.config, config, signals)


class _PrintReference(argparse.Action):
    """Prints the reference and ends, as --help does, without a --config."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        from backpressure.service.reference import reference

        print(reference(), end="")
        parser.exit()


def _serve(path: str, config: ServeConfig, signals: list[int]) -> int:
    try:
        service = Service(config)
    except BackpressureError as error:
        say(str(error))
        return USAGE if isinstance(error, ConfigError) else FAILED
    except OSError as error:
        say(reason(error))
        return FAILED
    if not _ending(signals):
        try:
            service.start()
        except RuntimeError as error:
            say(str(error))
            service.stop(lambda: True)
            return FAILED
        for address in service.addresses:
            _log.info("listening: %s", address)
        notify("READY=1", "STATUS=" + _status(service))
        _watch(path, service, signals)
    notify("STOPPING=1")
    # A second signal ends it at once; one that asks for a reload does not.
    lost = service.stop(lambda: len(_ending(signals)) > 1)
    if service.kept:
        say(
            f"{service.kept:,} events stay in {', '.join(service.kept_in)} "
            "and are delivered at the next start"
        )
    if lost:
        say(
            f"{lost:,} events were NOT delivered; "
            "those from followed files are read again at the next start"
        )
    if lost or service.errors:
        return BY_SIGNAL + _ending(signals)[0] if lost and _ending(signals) else FAILED
    return OK


def _watch(path: str, service: Service, signals: list[int]) -> None:
    """Run until a signal, or the service itself, ends it."""
    watchdog = watchdog_seconds()
    next_save = next_ping = time.monotonic()
    status = _status(service)
    while not service.finished:
        if status != (status := _status(service)):
            notify("STATUS=" + status)
        while signals and _is_reload(signals[0]):
            signals.pop(0)
            _reload(path, service)
        if signals:
            _log.info(
                "ending: delivering what is buffered, for up to %g s",
                service.config.service.drain_timeout,
            )
            return
        now = time.monotonic()
        if now >= next_save:
            next_save = now + _SAVE_SECONDS
            service.save_positions()
        if watchdog is not None and now >= next_ping:
            next_ping = now + watchdog / 2
            notify("WATCHDOG=1")
        time.sleep(_SIGNAL_SECONDS)


def _status(service: Service) -> str:
    """What the unit's status says: what has failed, else the addresses."""
    # A datagram of systemd's has one assignment a line.
    return " ".join("; ".join(service.failures() or service.addresses).split())


def _reload(path: str, service: Service) -> None:
    """Read the configuration again. One that is wrong changes nothing."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        done, later = put_in_force(service, load(path))
    except OSError as error:
        _log.error("not reloaded: %s", reason(error, path))
    except Mistakes as error:
        for line in error.lines:
            _log.error("not reloaded: %s", line)
    else:
        _log.info("reloaded: %s", ", ".join(done) or "nothing has changed that can be changed now")
        if later:
            _log.warning("needs a restart: %s", ", ".join(later))
    notify("READY=1")


def _ending(signals: list[int]) -> list[int]:
    """Those that end the service."""
    return [number for number in signals if not _is_reload(number)]


def _is_reload(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def _log_to_stderr(level: str) -> None:
    """Plain lines, with a time unless the journal reads them, which adds its own."""
    journal = "JOURNAL_STREAM" in os.environ
    pattern = "%(levelname)s %(message)s" if journal else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stderr, format=pattern, level="WARNING")
    _log.setLevel(level.upper())
