"""Service: what `forebay serve` runs: sources, a buffer for each sink, and HTTP.

    source threads ──Feed.put──> BufferManager ──Delivery──> sink
                   ──FanOut.put──> one each, where there are several sinks

    main thread    signals, positions of followed files, systemd's watchdog
    HTTP thread    the admin API, POST /events

Everything that can be refused (ports, files, the token) is opened by the constructor,
before anything runs. Sources wait while the buffer is full, and their senders wait with
them: that is the backpressure. With a directory the buffer is not full until the disk
is; they wait for a sink that takes all the same (`wait_for_sink`). A sink that fails
gets its batches again; where it is gone for good the service ends, unless it has
others.

The end: sources stop, what is buffered is delivered for up to `drain_timeout` seconds,
positions are saved. What is not delivered by then is counted and reported. It stays in
the buffer's directory where there is one; lines of followed files are read again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from backpressure.base.errors import ConfigError
from backpressure.base.wording import reason, said
from backpressure.buffer_manager import BufferManager
from backpressure.service.branch import Branch
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpSettings,
    HttpTarget,
    NamedSink,
    ServeConfig,
    SinkConfig,
    SourceConfig,
    StdinLines,
    StdoutTarget,
    TcpLines,
    UdpLines,
)
from backpressure.service.fan_out import UNROUTED, FanOut, Way
from backpressure.service.feed import Feed, settled_by
from backpressure.service.own_output import output_files
from backpressure.service.reopening import ReopeningSink
from backpressure.sinks import Sink, open_sink
from backpressure.sources import LineReader, LineTooLong, check_source
from backpressure.sources.base import Incidents, Marks, ServiceSource, SourceStats
from backpressure.sources.open_files import OpenFiles
from backpressure.sources.positions import Positions

__all__ = ["Service", "make_sink", "read_token"]

_log = logging.getLogger("backpressure")

# How often the end looks whether all is delivered, or a second signal has come
# (seconds).
_LOOK_SECONDS = 0.02
# Seconds that the end waits for each thread; by then none has anything to wait for.
_JOIN_SECONDS = 5.0
# Seconds that the HTTP server may take to start.
_HTTP_START_SECONDS = 10.0


class Service:
    """One run, from the opening of its parts to the end.

    OSError or BackpressureError from the constructor: something cannot be opened, and
    nothing is left open.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.stopping = threading.Event()
        #: Events that stay on disk at the end, for the next start, and where.
        self.kept = 0
        self.kept_in: list[str] = []
        #: Why a source, the delivery or HTTP ended before its time.
        self.errors: list[str] = []
        self._failed: dict[str, str] = {}
        self._branches: list[Branch] = []
        self._routing = Incidents("routes", UNROUTED)
        self._cleanups: list[Callable[[], object]] = []
        self._server: Any = None
        self._open_files = OpenFiles()
        try:
            self._positions = Positions(config.service.state_file)
            for sink in config.sinks:
                self._open_branch(sink)
            #: The first sink's; of one sink, the only one.
            self.buffer = self._branches[0].buffer
            self._sources = [self._make_source(one) for one in config.source]
            self._http_socket = None
            if config.http is not None:
                self._server, self._http_socket = self._make_server(config.http)
        except BaseException as error:
            self._close_all()
            if isinstance(error, ValueError) and not isinstance(error, ConfigError):
                raise ConfigError("service.state_file", str(error)) from None
            raise
        ways = [Way(branch.buffer, branch.config.route) for branch in self._branches]
        self._feeds = [self._make_feed(one, ways) for one in config.source]
        self._threads = [
            threading.Thread(
                target=self._run_source,
                args=(source, feed),
                name=f"forebay-{source.name}",
                daemon=True,
            )
            for source, feed in zip(self._sources, self._feeds, strict=True)
        ]
        self._http = threading.Thread(target=self._serve_http, name="forebay-http", daemon=True)

    # ------------------------------------------------------------ its parts

    def _close_at_end(self, thing: Any) -> Any:
        self._cleanups.append(thing.close)
        return thing

    def _close_all(self) -> None:
        for close in reversed(self._cleanups):
            try:
                close()
            except OSError as error:
                self.errors.append(reason(error))
        self._cleanups.clear()

    def _open_branch(self, config: NamedSink) -> None:
        single = self.config.is_single
        directory = config.buffer.directory
        if not single and directory is not None:
            # The folder that holds those of all sinks: a buffer makes its own only.
            os.makedirs(os.path.dirname(os.path.abspath(directory)), exist_ok=True)
        buffer = BufferManager(config.buffer)
        self._cleanups.append(lambda: buffer.close(timeout=0.0))
        target = config.target
        sink = self._close_at_end(
            ReopeningSink(lambda: make_sink(target))
            if isinstance(target, FileTarget)
            else make_sink(target)
        )
        label = "sink" if single else f"sink {config.name}"
        self._branches.append(Branch(config, buffer, sink, label))

    def _make_feed(self, source: SourceConfig, ways: list[Way]) -> Feed | FanOut:
        config, priority = self.config, self.config.priority_of(source)
        if config.is_single:
            waits = config.waits_for_sink
            return Feed(self.buffer, priority, source.priority_by, wait_for_sink=waits)
        return FanOut(ways, source.name, priority, source.priority_by, self._routing)

    def _make_source(self, config: SourceConfig) -> ServiceSource:
        limit = self.config.line_limit(config)
        if isinstance(config, FileFollow):
            from backpressure.sources.follow import FollowSource

            return FollowSource(
                config.path,
                positions=self._positions,
                start=config.start,
                max_line_bytes=limit,
                open_files=self._open_files,
                avoid=self._output_files,
            )
        if isinstance(config, StdinLines):
            check_source("-")
            return _Stdin(limit)
        if isinstance(config, UdpLines):
            from backpressure.sources.datagrams import DatagramSource, udp_socket

            bound = self._close_at_end(udp_socket(config.host, config.port))
            name = f"udp:{config.host}:{bound.getsockname()[1]}"
            return DatagramSource(bound, name, max_line_bytes=limit)
        from backpressure.sources.sockets import SocketSource, tcp_listener, unix_listener

        if isinstance(config, TcpLines):
            listener = self._close_at_end(tcp_listener(config.host, config.port))
            name, path = f"tcp:{config.host}:{listener.getsockname()[1]}", None
        else:
            listener = self._close_at_end(unix_listener(config.path, int(config.mode, 8)))
            name, path = f"unix:{config.path}", config.path
        return SocketSource(
            listener,
            name,
            max_connections=config.max_connections,
            max_line_bytes=limit,
            framing=config.framing,
            idle_timeout=config.idle_timeout,
            path=path,
        )

    def _output_files(self) -> set[tuple[int, int]]:
        return set[tuple[int, int]]().union(
            *(output_files(sink.target) for sink in self.config.sinks)
        )

    def _make_server(self, config: HttpSettings) -> tuple[Any, Any]:
        from backpressure.sources.sockets import tcp_listener

        try:
            http = import_module("backpressure.http")
        except ImportError as error:
            raise ConfigError("http", f"{error}") from error
        # Bound here, so that a port in use is an error like any other.
        listener = self._close_at_end(tcp_listener(config.host, config.port))
        defaults = http.HttpConfig()
        settings = http.HttpConfig(
            allowed_hosts=(*defaults.allowed_hosts, *config.allowed_hosts),
            allowed_origins=(*defaults.allowed_origins, *config.allowed_origins),
            keep_alive=config.keep_alive,
        )
        port = listener.getsockname()[1]
        try:
            token = read_token(config)
            server = http.make_server(
                self.buffers,
                host=config.host,
                port=port,
                token=token,
                config=settings,
                source_stats=self.source_stats,
                parts=self.parts,
            )
        except ConfigError as error:
            raise ConfigError(
                f"http.{error.field}", str(error).removeprefix(f"{error.field}: ")
            ) from None
        return server, listener

    def source_stats(self) -> list[SourceStats]:
        """What the sources that count it have had to leave out."""
        counted = [getattr(source, "stats", None) for source in self._sources]
        found = [stats() for stats in counted if stats is not None]
        if not self.config.is_single:
            found.append(SourceStats(name="routes", incidents=self._routing.snapshot()))
        return found

    @property
    def addresses(self) -> list[str]:
        """The addresses it listens on, with the ports that the system chose."""
        listening = [source.name for source in self._sources if not isinstance(source, _Stdin)]
        if self._http_socket is not None:
            host, port = self._http_socket.getsockname()[:2]
            listening.append(f"http://{f'[{host}]' if ':' in host else host}:{port}/buffer/")
        return listening

    def parts(self) -> dict[str, str | None]:
        """What runs beside the buffer, by name, with what ended each before its time;
        None: nothing has. Of its delivery the buffer's own statistics tell.
        """
        names = [source.name for source in self._sources]
        if self._server is not None:
            names.append("http")
        return {name: self._failed.get(name) for name in names}

    def failures(self) -> list[str]:
        """What has ended before its time, and why."""
        found = [f"{name}: {error}" for name, error in self.parts().items() if error is not None]
        return found + [branch.error for branch in self._branches if branch.error is not None]

    @property
    def buffers(self) -> BufferManager | dict[str, BufferManager]:
        """The buffer of the one sink, or those of several, by the sinks' names."""
        if self.config.is_single:
            return self.buffer
        return {branch.config.name: branch.buffer for branch in self._branches}

    def buffer_of(self, sink: str) -> BufferManager:
        """The buffer of the sink with that name."""
        return next(branch.buffer for branch in self._branches if branch.config.name == sink)

    # ------------------------------------------------------------ its life

    def start(self) -> None:
        """Start all threads; RuntimeError where the HTTP server does not start."""
        for branch in self._branches:
            branch.start()
        for thread in self._threads:
            thread.start()
        if self._server is not None:
            self._http.start()
            deadline = time.monotonic() + _HTTP_START_SECONDS
            while not self._server.started:
                if not self._http.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError("the HTTP server did not start")
                time.sleep(0.01)

    @property
    def finished(self) -> bool:
        """Whether no more can come in and all is delivered, or delivery has ended."""
        if not any(branch.running for branch in self._branches):
            return True
        running = any(thread.is_alive() for thread in self._threads)
        drained = all(branch.drained for branch in self._branches)
        return not running and self._server is None and drained

    def save_positions(self) -> None:
        """Commit and save how far followed files have been delivered.

        An error is logged, and the next save tries again.
        """
        settled = [number for branch in self._branches for number in settled_by(branch.buffer)]
        self._positions.commit(settled)
        try:
            self._positions.save()
        except OSError as error:
            _log.error("positions are not saved: %s", reason(error))

    def reopen(self) -> None:
        """Open each sink that is a file anew, for logrotate."""
        for branch in self._branches:
            if isinstance(branch.sink, ReopeningSink):
                branch.sink.reopen()

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> int:
        """Read no more, deliver what is left, end.

        Delivery goes on for up to `drain_timeout` seconds, or until `hurry()` is true.
        Meanwhile the sink is asked whatever the circuit breaker says.
        Returns how many events were not delivered, including those that were read and
        no longer accepted.
        """
        deadline = time.monotonic() + self.config.service.drain_timeout
        self.stopping.set()
        if self._server is not None:
            self._server.should_exit = True
        for branch in self._branches:
            branch.hurry()
        while (
            any(branch.running for branch in self._branches)
            and not hurry()
            and (left := deadline - time.monotonic()) > 0
        ):
            busy = any(thread.is_alive() for thread in self._threads) or self._http.is_alive()
            if not busy and all(branch.drained for branch in self._branches):
                break
            time.sleep(min(left, _LOOK_SECONDS))
        for branch in self._branches:
            branch.stop_delivery()
        # Before the buffers drop what is left: dropped counts as settled, and these
        # positions must not be committed.
        self.save_positions()
        undelivered = 0
        for branch in self._branches:
            lost, kept = branch.close_buffer()
            undelivered += lost
            self.kept += kept
            if kept:
                self.kept_in.append(str(branch.config.buffer.directory))
        seconds = 0.1 if hurry() else _JOIN_SECONDS
        for thread in (*self._threads, self._http):
            if thread.is_alive():
                thread.join(seconds)
        for branch in self._branches:
            branch.wait(seconds, self.errors.append)
        if lost := self._routing.count(UNROUTED):
            _log.warning("%d lines fitted no sink's route, and were dropped", lost)
        self._close_all()
        return undelivered + sum(feed.unaccepted for feed in self._feeds)

    # ------------------------------------------------------------ its threads

    def _run_source(self, source: ServiceSource, feed: Feed | FanOut) -> None:
        try:
            source.run(feed.put, self.stopping)
        except (OSError, LineTooLong) as error:
            self._note_failure(source.name, reason(error))
        except Exception as error:
            _log.exception("%s failed", source.name)
            self._note_failure(source.name, said(error))
        else:
            if not (isinstance(source, _Stdin) or self.stopping.is_set() or self.buffer.closing):
                self._note_failure(source.name, "it ended before its time")

    def _serve_http(self) -> None:
        try:
            self._server.run(sockets=[self._http_socket])
        except Exception as error:
            _log.exception("the HTTP server failed")
            self._note_failure("http", said(error))
        else:
            if not self._server.should_exit:
                self._note_failure("http", "it ended before its time")

    def _note_failure(self, part: str, error: str) -> None:
        self._failed[part] = error
        self.errors.append(f"{part}: {error}")
        _log.error("%s: %s", part, error)


class _Stdin:
    """stdin as a ServiceSource."""

    name = "stdin"

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes

    def run(self, put: Callable[[memoryview], Marks | None], stopping: threading.Event) -> None:
        for chunk in LineReader(
            ["-"], max_line_bytes=self._max_line_bytes, stopping=stopping.is_set
        ):
            if put(chunk.data) is None:
                return


def make_sink(config: SinkConfig) -> Sink:
    """The sink that a [sink] table describes. OSError."""
    if isinstance(config, FileTarget):
        return open_sink(config.path, append=True, end_line=True, rotation=config.rotation)
    if isinstance(config, StdoutTarget):
        return open_sink("-")
    if isinstance(config, HttpTarget):
        from backpressure.sinks.http import HttpSink

        return HttpSink(
            config.url,
            headers=config.headers,
            timeout=config.timeout,
            deadline=config.deadline,
            compression=config.compression,
            max_concurrency=config.workers,
        )
    from backpressure.sinks.tcp import TcpSink

    return TcpSink(config.host, config.port, timeout=config.timeout)


def read_token(config: HttpSettings) -> str | None:
    """The token, from its file where it has one. ConfigError."""
    if config.token_file is None:
        return config.token
    try:
        token = Path(config.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "token_file", reason(error) if isinstance(error, OSError) else "it is no text"
        ) from None
    try:
        return HttpSettings(token=token).token
    except ConfigError as error:
        raise ConfigError("token_file", str(error).removeprefix("token: ")) from None
