"""`forebay pump`: arguments, signals, messages and exit codes around a Transfer."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import replace

from backpressure.base.errors import BackpressureError, ConfigError
from backpressure.base.wording import reason
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.lane_size import lane_bytes_for
from backpressure.buffer_manager import BufferManager
from backpressure.cli.common import BY_CTRL_C, BY_SIGNAL, FAILED, OK, USAGE, noted_signals, say
from backpressure.cli.progress import Display, Row, make_display, megabytes
from backpressure.cli.pump.arguments import DRAIN_SECONDS, parse
from backpressure.cli.pump.transfer import Progress, Transfer
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.policies.flow_control_manager import FlowControlConfig
from backpressure.sinks import LineSink, Sink, open_sink
from backpressure.sources import LineTooLong, check_source
from backpressure.sources.priority_rules import PriorityRules
from ringbuf import MessageRing

__all__ = ["main"]

# How long a batch that is being sent when the run is abandoned may still take (seconds)
# before it counts as not delivered.
_SETTLE_SECONDS = 1.0
# Twice as fast as the buffer's 16 MiB, which leave the cache between the copy out of
# the lane and the write; and large enough that the cost of calls does not matter.
_BATCH_BYTES = 1 << 20
# The handler only leaves a note; this is how soon it is read.
_SIGNAL_SECONDS = 0.1


def main(argv: Sequence[str]) -> int:
    """Run `forebay pump` with these arguments; returns the exit code."""
    options = parse(argv)
    # The command reports what is lost, once.
    logging.getLogger("backpressure").addHandler(logging.NullHandler())
    try:
        return _pump(options)
    except KeyboardInterrupt:  # before the run, which handles signals itself
        say("interrupted before anything was read")
        return BY_CTRL_C


def _pump(options: argparse.Namespace) -> int:
    try:
        config = _config(options)
    except ConfigError as error:
        say(str(error))
        return USAGE
    try:
        # In this order: a mistake in the sources must not cost the contents of the
        # sink.
        for source in options.sources:
            check_source(source)
        buffer = BufferManager(config)
    except (BackpressureError, OSError) as error:
        say(reason(error))
        return FAILED
    try:
        sink = _open_sink(options)
    except OSError as error:
        say(reason(error))
        buffer.close(timeout=0.0)
        return FAILED
    found = buffer.resident
    transfer = Transfer(
        buffer,
        options.sources,
        _with_failures(sink, options),
        max_line_bytes=_max_line_bytes(buffer.config),
        rules=PriorityRules(options.priority_by) if options.priority_by else None,
        batch_size=options.batch_size,
        retry_for=options.retry_for,
        leave_open=sink.leave_open,
    )
    display = make_display(
        quiet=options.quiet, total_bytes=None if found else _total_bytes(options.sources)
    )
    if found:
        display.note(
            f"{found:,} events of an earlier run are in {options.directory}: they go first"
        )
    if options.inject_failures:
        display.note(
            f"{100 * options.inject_failures:g} % of the writes fail on purpose "
            "(--inject-failures): the rate has the waits in it that they cost"
        )
    with noted_signals("SIGINT", "SIGTERM") as signals:
        transfer.start()
        settled = _watch(transfer, buffer, display, signals)
        progress = transfer.progress()
        if settled:
            _close_sink(sink, transfer)
        display.finish(_rows(progress, buffer))
        return _conclude(transfer, progress, buffer, signals, settled)


def _config(options: argparse.Namespace) -> BufferConfig:
    """The buffer's config: all policies on, with what the command line changes."""
    config = BufferConfig(
        directory=options.directory,
        durability=options.durability,
        max_batch_bytes=_BATCH_BYTES,
        circuit_breaker=CircuitBreakerConfig(reset_timeout=options.reset_timeout),
    )
    given = options.lane_bytes
    config = replace(config, lane_bytes=lane_bytes_for(config) if given is None else given)
    if options.rate is not None:
        # A second's worth may pass at once: less would split chunks of lines too
        # finely.
        flow = FlowControlConfig(
            max_events_per_second=options.rate, burst_size=max(1, round(options.rate))
        )
        config = replace(config, flow_control=flow)
    return config


def _open_sink(options: argparse.Namespace) -> LineSink:
    """The sink, not emptied where an earlier run may have delivered to it. OSError."""
    keeps = options.directory is not None
    return open_sink(
        options.to, append=options.append or keeps, sources=options.sources, end_line=keeps
    )


def _max_line_bytes(config: BufferConfig) -> int:
    """The longest line that a lane takes.

    A ring like the lane's own says so, whose memory is never touched.
    """
    return MessageRing(config.lane_bytes).max_message_bytes


def _with_failures(sink: LineSink, options: argparse.Namespace) -> Sink:
    """The sink, failing as often as --inject-failures asks for."""
    if not options.inject_failures:
        return sink
    from backpressure.testing import FailingSink

    return FailingSink(sink, options.inject_failures, seed=options.seed)


def _watch(transfer: Transfer, buffer: BufferManager, display: Display, signals: list[int]) -> bool:
    """Show the run until it ends or a signal ends it.

    False: a batch is still being sent.
    """
    shown = time.monotonic()
    deadline = None
    while not transfer.wait(_SIGNAL_SECONDS):
        now = time.monotonic()
        if signals and deadline is None:
            transfer.stop()
            deadline = now + DRAIN_SECONDS
            display.note("ending: delivering what is buffered; Ctrl-C again ends it at once")
        if deadline is not None and (now >= deadline or len(signals) > 1):
            transfer.abandon()
            break
        if now - shown >= display.interval:
            shown = now
            display.update(transfer.progress(), _what_holds_up(buffer))
    return transfer.settle(_SETTLE_SECONDS)


def _what_holds_up(buffer: BufferManager) -> str:
    """What holds the run up, in words."""
    held_up = []
    if buffer.is_circuit_breaker_open():
        held_up.append("circuit open")
    if buffer.is_backpressure_active():
        held_up.append("backpressure")
    return ", ".join(held_up)


def _close_sink(sink: Sink, transfer: Transfer) -> None:
    """Close the sink; its error counts unless there is one already."""
    try:
        sink.close()
    except OSError as error:
        transfer.sink_error = transfer.sink_error or error


def _rows(progress: Progress, buffer: BufferManager) -> list[Row]:
    """The closing table."""
    stats = buffer.stats()
    seconds = max(progress.seconds, 1e-9)  # 0 within the clock's first tick
    mean = progress.events / max(progress.batches, 1)
    smallest, largest = progress.smallest_batch, progress.largest_batch
    return [
        ("events delivered", f"{progress.events:,}"),
        ("bytes", megabytes(progress.nbytes)),
        ("time", f"{progress.seconds:,.2f} s"),
        (
            "rate",
            f"{progress.events / seconds:,.0f} events/s, {megabytes(progress.nbytes / seconds)}/s",
        ),
        ("batches", f"{progress.batches:,}"),
        ("events in a batch", f"{mean:,.0f} (from {smallest:,} to {largest:,})"),
        ("failed batches", f"{stats.batches_nacked:,}"),
        ("events redelivered", f"{stats.redelivered:,}"),
        ("under backpressure", f"{stats.backpressure_seconds:,.2f} s"),
        ("breaker trips", f"{stats.circuit_trips:,}"),
        ("not delivered", f"{progress.undelivered:,}"),
    ]


def _conclude(
    transfer: Transfer,
    progress: Progress,
    buffer: BufferManager,
    signals: list[int],
    settled: bool,
) -> int:
    """Say what went wrong and what is missing; returns the exit code."""
    code = OK
    for error in (transfer.source_error, transfer.sink_error):
        if error is None:
            continue
        code = FAILED
        if isinstance(error, LineTooLong):
            say(f"{error}, which is what a lane can hold: make it larger with --lane-bytes")
        elif isinstance(error, OSError):
            say(reason(error))
        else:
            raise error
    if not transfer.reader.exhausted:
        source, offset = transfer.position or ("the first source", 0)
        carried = transfer.reader.carried_bytes
        rest = f", {carried:,} bytes into a line" if carried else ""
        say(f"reading ended before the end, after byte {offset:,} of {source}{rest}")
    directory = buffer.config.directory
    kept = 0 if directory is None else buffer.resident
    if kept:
        code = FAILED
        say(f"{kept:,} events stay in {directory}, and the next run with it delivers them")
    if lost := progress.undelivered - kept:
        code = FAILED
        say(f"{lost:,} events were read and NOT delivered")
    if not settled:
        say("a batch was still being written: a part of it may have reached the sink")
    if signals and (code or not transfer.reader.exhausted):
        code = BY_SIGNAL + signals[0]
    return code


def _total_bytes(sources: Sequence[str]) -> int | None:
    """How much there is to read; None where a source is no regular file."""
    total = 0
    for source in sources:
        found = os.fstat(0) if source == "-" else os.stat(source)
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total
