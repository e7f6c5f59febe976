"""Sizes as text: one parser for every way in, and the words for people."""

from __future__ import annotations

import re

import pytest

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import build, format_size, parse_size
from backpressure.cli.pump.arguments import parse as parse_pump
from backpressure.logging import BufferHandler
from backpressure.service.load import parse as parse_serve

# Every spelling means the same everywhere. Units are powers of 1024.
SIZES = {
    "65536": 65536,
    "65_536": 65536,
    "65536B": 65536,
    "64K": 65536,
    "64k": 65536,
    "64KB": 65536,
    "64kB": 65536,
    "64KiB": 65536,
    "64 K": 65536,
    "64 KiB": 65536,
    " 64K ": 65536,
    "1M": 1 << 20,
    "1MB": 1 << 20,
    "64MiB": 64 << 20,
    "64mib": 64 << 20,
    "1_000K": 1000 << 10,
    "2gb": 2 << 30,
    "1G": 1 << 30,
    "1GiB": 1 << 30,
}
REFUSED = [
    "",
    " ",
    "K",
    "B",
    "MiB",
    "-1",
    "+1",
    "1.5M",
    "1X",
    "1KK",
    "1 0",
    "0x10",
    "1e6",
    "²",
    "٣",
    "64\u212a",  # the Kelvin sign
    "64k\u0131b",  # a dotless i
    "1" * 5000,
    "64IB",
    "1_",
    "_1",
    "1__0",
    "many",
]


def from_pump(text: str) -> object:
    return parse_pump(["-", "--to", "-", f"--lane-bytes={text}"]).lane_bytes


def from_mapping(text: str) -> object:
    return build(BufferConfig, {"lane_bytes": text}, "buffer").lane_bytes


def from_serve(text: str) -> object:
    tables = {"source": [{"type": "stdin"}], "sink": {"type": "stdout"}}
    return parse_serve({**tables, "buffer": {"lane_bytes": text}}, {}).buffer.lane_bytes


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert from_pump(text) == size
    assert from_mapping(text) == size
    assert from_serve(text) == size


def test_the_largest_unit() -> None:
    """No lane is that large."""
    assert parse_size("1T") == parse_size("1TB") == parse_size("1 TiB") == 1 << 40


@pytest.mark.parametrize("text", REFUSED)
def test_no_sizes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    accepted = "write bytes as a whole number, or with a unit of 1024 as 64K, 64M, 1G or 1T"
    message = f"{re.escape(repr(text))} is no size: {accepted}"
    with pytest.raises(ValueError, match=message):
        parse_size(text)
    with pytest.raises(ConfigError, match=f"buffer.lane_bytes: {message}"):
        from_mapping(text)
    with pytest.raises(SystemExit) as ended:
        from_pump(text)
    assert ended.value.code == 2
    assert f"--lane-bytes: {text!r} is no size: {accepted}" in capsys.readouterr().err


def test_a_variable_and_dictconfig_say_a_size_in_the_same_way(tmp_path: object) -> None:
    tables = {"source": [{"type": "stdin"}], "sink": {"type": "stdout"}}
    config = parse_serve(tables, {"FOREBAY_BUFFER__LANE_BYTES": "1MiB"})
    assert config.buffer.lane_bytes == 1 << 20
    handler = BufferHandler(sink=f"{tmp_path}/app.log", buffer={"lane_bytes": "1MiB"})
    try:
        assert handler.buffer.config.lane_bytes == 1 << 20
    finally:
        handler.close()


def test_help_says_which_units_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_pump(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "K, M, G or T of 1024 (64K, 64KB and 64KiB are the same; default: 64M; " in told
    assert BufferConfig().lane_bytes == parse_size("64M"), "the default that it tells"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        (320 << 20, "320 MiB"),
        ((1 << 20) - 1, "1 MiB"),
        (1 << 30, "1 GiB"),
        (1023 << 30, "1,023 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@pytest.mark.parametrize("size", [1 << 10, 64 << 20, 3 << 30, 1 << 40])
def test_what_is_said_can_be_typed(size: int) -> None:
    assert parse_size(format_size(size)) == size
