"""A file sink that puts its file aside: by size, by time, with others, on errors."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import re
from pathlib import Path

import pytest
import zstandard

from backpressure.base.errors import ConfigError
from backpressure.service.config import FileTarget
from backpressure.sinks import FileSink
from backpressure.sinks.file_rotation import FileRotation, RotationConfig
from tests.edges.test_sinks import Stumbling, batch_of
from tests.support.threads import run_threads

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows renames no open file"),
    pytest.mark.platform,
]


def content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def age(path: Path) -> tuple[str, int]:
    found = re.search(r"log\.(\d{8}-\d{6})(?:-(\d+))?", path.name)
    return ("~", 0) if found is None else (found[1], int(found[2] or 0))


def all_of(path: Path) -> list[Path]:
    """The file and what was put aside, oldest first."""
    return sorted(path.parent.iterdir(), key=age)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_by_size_and_every_line_in_its_order(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "app.log"
    rotation = RotationConfig(max_bytes=50, compression=compression)
    sink = FileSink(path, append=True, rotation=rotation)
    os.chmod(path, 0o640)
    lines = [b"line %04d" % number for number in range(60)]
    for start in range(0, 60, 3):
        sink.send(batch_of(*lines[start : start + 3]))
    sink.close()
    FileRotation(str(path), rotation).tidy()
    files = all_of(path)
    assert len(files) == 10
    assert b"".join(map(content, files)) == b"".join(line + b"\n" for line in lines)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}
    suffix = {"none": "", "gzip": ".gz", "zstd": ".zst"}[compression]
    assert all(file.name.endswith(suffix) for file in files[:-1])


def test_by_time_also_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    now = [1_796_000_000.0]
    rotation = FileRotation(str(path), RotationConfig(period=3600.0, keep=2), wall=lambda: now[0])
    for hour in range(5):
        path.write_bytes(b"%d\n" % hour)
        os.utime(path, (now[0], now[0]))
        assert not rotation.is_due(path.stat())
        now[0] += 3600
        assert rotation.is_due(path.stat())
        rotation.put_aside()
        rotation.wait(30)
    assert [content(file) for file in all_of(path)] == [b"3\n", b"4\n"], "two are kept"
    path.touch()
    assert not rotation.is_due(path.stat()), "an empty file is not put aside"


def test_several_in_one_second_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    rotation = FileRotation(
        str(path), RotationConfig(max_bytes=1, keep=11, compression="gzip"), wall=lambda: 0.0
    )
    for number in range(15):
        path.write_bytes(b"%d\n" % number)
        rotation.put_aside()
        rotation.wait(30)
    rotation.tidy()
    assert [content(file) for file in all_of(path)] == [b"%d\n" % n for n in range(4, 15)]


def test_a_batch_that_failed_goes_on_in_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True, rotation=RotationConfig(max_bytes=20))
    sink.send(batch_of(b"one"))
    batch = batch_of(b"two", b"three")
    sink.writer = Stumbling(fail_after=6)
    with pytest.raises(OSError, match="No space left"):
        sink.send(batch)
    sink.writer = os.write
    with path.open("ab") as file:
        file.write(b"another writer makes it too large\n")
    sink.send(batch)
    sink.close()
    text = b"".join(map(content, all_of(path)))
    assert text == b"one\nanother writer makes it too large\ntwo\nthree\n"


def test_sinks_that_share_a_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    rotation = RotationConfig(max_bytes=400, compression="gzip")

    def work(name: int) -> None:
        sink = FileSink(path, append=True, rotation=rotation if name else None)
        for number in range(100):
            sink.send(batch_of(b"%d %03d" % (name, number)))
        sink.close()

    run_threads([lambda: work(0), lambda: work(1), lambda: work(2)])
    FileRotation(str(path), rotation).tidy()
    files = all_of(path)
    lines = b"".join(map(content, files)).splitlines()
    assert len(files) > 3
    assert sorted(lines) == [b"%d %03d" % (name, one) for name in range(3) for one in range(100)]


def test_a_file_that_grows_while_it_is_compressed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"one\n")
    rotation = FileRotation(str(path), RotationConfig(max_bytes=1, compression="gzip"))
    write = FileRotation._write

    def grow(self: FileRotation, plain: object, file: object) -> None:
        write(self, plain, file)  # type: ignore[arg-type]
        aside = next(one for one in tmp_path.iterdir() if one.suffix != ".tmp")
        with aside.open("ab") as late:
            late.write(b"late\n")

    with monkeypatch.context() as patch:
        patch.setattr(FileRotation, "_write", grow)
        rotation.put_aside()
        rotation.wait(30)
    assert [content(one) for one in tmp_path.iterdir()] == [b"one\nlate\n"]
    rotation.tidy()
    (one,) = tmp_path.iterdir()
    assert one.suffix == ".gz"
    assert content(one) == b"one\nlate\n"


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_compression_that_fails_is_said_and_done_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"one\n")
    rotation = FileRotation(str(path), RotationConfig(max_bytes=1, compression="gzip"))

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        rotation.put_aside()
        rotation.wait(30)
    assert "is not rotated: no space" in caplog.text
    rotation.tidy()
    assert {content(one) for one in tmp_path.iterdir() if one.suffix != ".tmp"} == {b"one\n"}


def test_a_rename_that_fails_loses_no_line_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backpressure")
    path = tmp_path / "app.log"
    sink = FileSink(path, append=True, rotation=RotationConfig(max_bytes=1))

    def fail(*arguments: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", fail)
    for number in range(3):
        sink.send(batch_of(b"%d" % number))
    sink.close()
    assert path.read_bytes() == b"0\n1\n2\n"
    assert caplog.text.count("is not rotated: Permission denied") == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"rotate_bytes": 0}, "rotate_bytes"),
        ({"rotate_period": 0.5}, "rotate_period"),
        ({"rotate_bytes": 1, "rotate_keep": 0}, "rotate_keep"),
        ({"rotate_bytes": 1, "rotate_compression": "lz4"}, "rotate_compression"),
        ({"rotate_keep": 3}, "rotate_keep"),
        ({"rotate_compression": "gzip"}, "rotate_compression"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(given: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FileTarget(path="a.log", **given)  # type: ignore[arg-type]
    assert refused.value.field == field
    with pytest.raises(ValueError, match="append"):
        FileSink("never-made", rotation=RotationConfig(max_bytes=1))
