"""What a configuration of `forebay serve` does, in words, for `--check`."""

from __future__ import annotations

from backpressure.buffer.config import Durability, WhenFull
from backpressure.buffer.from_mapping import format_size
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpTarget,
    NamedSink,
    Route,
    ServeConfig,
    SinkConfig,
    SourceConfig,
    StdinLines,
    StdoutTarget,
    TcpLines,
    UdpLines,
)

__all__ = ["explain"]


def explain(config: ServeConfig) -> str:
    """The configuration in words, several lines."""
    lines = ["this configuration is valid", ""]
    for number, source in enumerate(config.source):
        lines.append(f"source[{number}]  {_explain_source(source)}")
        rules = "".join(
            f", {rule.rpartition('=')[2]} where {rule.rpartition('=')[0]!r} matches"
            for rule in source.priority_by
        )
        limit = f"lines of at most {config.line_limit(source):,} bytes, longer ones are skipped"
        lines.append(f"           priority {config.priority_of(source)}{rules}; {limit}")
    if any(isinstance(source, FileFollow) for source in config.source):
        kept = config.service.state_file
        lines.append(
            f"positions  kept in {kept}: a restart goes on where delivery ended"
            if kept
            else "positions  not kept (service.state_file): "
            "after a restart, files are read as if for the first time"
        )
    for sink in config.sinks:
        if not config.is_single:
            lines += ["", f"[[sink]]   {sink.name}: {_explain_route(sink.route)}"]
        lines += _explain_buffer(config, sink)
    if not config.is_single:
        lines.append("")
        if not any(sink.route.takes_all for sink in config.sinks):
            lines.append("routes     a line that fits none of them is dropped, and counted")
    http = config.http
    if http is None:
        lines.append("http       none")
    else:
        token = http.token or http.token_file
        changes = (
            "changes need the token"
            if token
            else "without a token: nothing can be changed, nor uploaded"
        )
        lines.append(f"http       on {http.host}:{http.port}; {changes}")
    lines.append(f"end        drains for up to {config.service.drain_timeout:g} s")
    return "\n".join(lines)


def _explain_buffer(config: ServeConfig, sink: NamedSink) -> list[str]:
    buffer, levels = sink.buffer, config.priority_levels
    return [
        f"buffer     {levels} lane{'s' * (levels > 1)} of {format_size(buffer.lane_bytes)}: "
        f"at most {format_size(levels * buffer.lane_bytes)} of memory, used as it fills"
        + ("" if buffer.directory is None else "; on disk from the start"),
        f"           {_explain_when_full(buffer.when_full, alone=config.is_single)}",
        f"           at most {buffer.flow_control.max_events_per_second:,.0f} events/s"
        + ("" if buffer.flow_control.throttle_enabled else " (not throttled)"),
        "           in memory: what is buffered is lost if the process is killed"
        if buffer.directory is None
        else f"           in {buffer.directory}, durability {buffer.durability.value}: "
        "what was accepted survives the process",
        *([_explain_wait(config)] if buffer.directory is not None else []),
        *(
            [f"           events older than {buffer.max_age:g} s are dropped"]
            if buffer.max_age is not None
            else []
        ),
        f"sink       {_explain_sink(sink.target)}",
        f"           a batch that fails comes again after {buffer.retry_backoff:g} to "
        f"{buffer.longest_backoff:g} s; "
        f"{_explain_circuit(buffer.circuit_breaker)}",
    ]


def _explain_route(route: Route) -> str:
    if route.takes_all:
        return "gets every line"
    wanted = []
    if route.priority:
        wanted.append(f"of priority {', '.join(map(str, route.priority))}")
    if route.source:
        wanted.append(f"from {', '.join(route.source)}")
    if route.match is not None:
        wanted.append(f"where {route.match!r} matches")
    return f"gets lines {', '.join(wanted)}"


def _explain_wait(config: ServeConfig) -> str:
    if config.buffer.durability is not Durability.PROCESS:
        return "           everything is written to disk as it comes"
    if config.waits_for_sink:
        return (
            "           sources wait for a sink that takes; what it does not take goes to disk "
            "once a lane is half full"
        )
    return "           what a sink does not take at once goes to disk once a lane is half full"


def _explain_circuit(breaker: CircuitBreakerConfig) -> str:
    if breaker.is_sequential:
        return (
            f"the circuit opens once the sink is sure to fail far more than "
            f"{breaker.failure_threshold:.0%}, for up to {breaker.longest_open_time:g} s"
        )
    return (
        f"the circuit opens at {breaker.failure_threshold:.0%} failures, "
        f"for {breaker.reset_timeout:g} s"
    )


def _explain_source(source: SourceConfig) -> str:
    if isinstance(source, FileFollow):
        where = "their end" if source.start == "end" else "their beginning"
        return (
            f"follows {source.path}; files that are there at the first start are read from {where}"
        )
    if isinstance(source, StdinLines):
        return "stdin, to its end"
    if isinstance(source, UdpLines):
        return f"datagrams over UDP on {source.host}:{source.port}, each a line"
    if isinstance(source, TcpLines):
        where = f"TCP on {source.host}:{source.port}"
    else:
        where = f"the Unix socket {source.path} (mode {source.mode})"
    framing = "lines" if source.framing == "newline" else f"lines (framing {source.framing})"
    idle = "" if source.idle_timeout is None else f", closed after {source.idle_timeout:g} s idle"
    return f"{framing} over {where}, at most {source.max_connections} connections{idle}"


def _explain_sink(sink: SinkConfig) -> str:
    if isinstance(sink, FileTarget):
        return f"adds to {sink.path}{_explain_rotation(sink)}"
    if isinstance(sink, StdoutTarget):
        return "stdout"
    if isinstance(sink, HttpTarget):
        from backpressure.sinks.http import shown_url

        at_once = "one at a time" if sink.workers == 1 else f"up to {sink.workers} at a time"
        return (
            f"POST {shown_url(sink.url)}, {at_once}, compression {sink.compression}, "
            f"timeout {sink.timeout:g} s, {sink.deadline or 6 * sink.timeout:g} s in all"
        )
    return (
        f"lines over TCP to {sink.host}:{sink.port}: "
        "delivered is what the system took, there is no answer"
    )


def _explain_rotation(sink: FileTarget) -> str:
    rotation = sink.rotation
    if rotation is None:
        return ""
    when = []
    if rotation.max_bytes is not None:
        when.append(f"at {format_size(rotation.max_bytes)}")
    if rotation.period is not None:
        when.append(f"every {rotation.period:g} s")
    kept = "all are kept" if rotation.keep is None else f"{rotation.keep} are kept"
    return f", put aside {' and '.join(when)}, compression {rotation.compression}; {kept}"


def _explain_when_full(when_full: WhenFull, *, alone: bool) -> str:
    if when_full is WhenFull.DROP_OLDEST:
        told = "when a lane is full, its oldest events are dropped and counted"
    elif when_full is WhenFull.DROP_LOWEST_PRIORITY:
        told = "when it is full, events of the least urgent priority are dropped and counted"
    else:
        told = (
            "when a lane is full, its sources wait, and their senders with them; "
            "POST /events gets 503"
        )
        return told if alone else f"{told}: the other sinks wait as well"
    return told if alone else f"{told}: it holds up no other sink"
