"""FileRotation: a file sink's file is put aside when it is large or old.

    out.log                       what is written to
    out.log.20261130-235959       put aside then (UTC); a second one within that second
                                  has -1 behind it
    out.log.20261130-120000.gz    compressed since

Invariants.

1. A file is put aside between two batches, by a rename, and its name never changes
   again: no row of files is moved up, so a crash leaves nothing half done.
2. Compressing and deleting are a thread's business: a batch waits for a rename only.
3. A file is removed once its compressed form is whole, synced and named, and it has not
   grown meanwhile; else it stays, and is compressed at the next rotation.

Age is told by the clock on the wall and the file's own time of writing: it is put aside
by the first batch of a period if its last line is of an earlier one, also across
restarts. A period of 86,400 seconds begins at midnight UTC.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final

import zstandard

from backpressure.base.errors import ConfigError
from backpressure.base.validation import check_fields
from backpressure.base.wording import reason
from backpressure.sinks.file_lock import FileLock

__all__ = ["FileRotation", "RotationConfig"]

_log = logging.getLogger("backpressure")

_SUFFIXES: Final = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_STAMP: Final = r"\.\d{8}-\d{6}(?:-\d+)?"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationConfig:
    """max_bytes: a file of that size or more is put aside; None: of any size.
    period: seconds, as in the module's docstring; None: of any age.
    keep: how many are kept; what is older is deleted. None: all.
    compression: of those put aside: "none", "gzip" or "zstd".
    """

    max_bytes: int | None = None
    period: float | None = None
    keep: int | None = None
    compression: str = "none"

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            check_fields(self, int, 1, 1 << 62, "max_bytes")
        if self.period is not None:
            check_fields(self, float, 1.0, 366 * 86_400.0, "period")
        if self.keep is not None:
            check_fields(self, int, 1, 1_000_000, "keep")
        if self.compression not in _SUFFIXES:
            raise ConfigError(
                "compression",
                f"must be one of {', '.join(_SUFFIXES)}, not {self.compression!r}",
            )


class FileRotation:
    """For the file `path`. wall: seconds since 1970.

    `is_due` and `put_aside` are for the sink's thread; `tidy` for any.
    """

    def __init__(
        self, path: str, config: RotationConfig, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = os.path.abspath(path)
        self._config = config
        self._wall = wall
        self._tidying = threading.Lock()
        self._thread: threading.Thread | None = None

    def is_due(self, found: os.stat_result) -> bool:
        """Whether the file with that stat is to be put aside before the next batch."""
        config = self._config
        if not found.st_size:
            return False
        if config.max_bytes is not None and found.st_size >= config.max_bytes:
            return True
        period = config.period
        return period is not None and self._wall() // period > found.st_mtime // period

    def put_aside(self) -> None:
        """Rename the file, and have the rest done by a thread. OSError."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._wall()))
        # Behind all of this second: a number that a deleted one had would be too low.
        same = [number for when, number in map(_age_key, self._aside()) if when == stamp]
        name = f"{self._path}.{stamp}" + (f"-{max(same) + 1}" if same else "")
        os.rename(self._path, name)
        if self._config.compression == "none" and self._config.keep is None:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.tidy, name="forebay-rotate", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread to be had: the next time
                self._thread.start()

    def tidy(self) -> None:
        """Compress what is put aside, and delete what is more than is kept.

        Errors are logged.
        """
        with self._tidying:
            try:
                if self._config.compression != "none":
                    for path in self._aside(compressed=False):
                        self._compress(path)
                if self._config.keep is not None:
                    for path in self._aside()[: -self._config.keep]:
                        os.unlink(path)
            except OSError as error:
                _log.error("%s is not rotated: %s", self._path, reason(error))

    def wait(self, seconds: float) -> None:
        """Wait for what is being compressed. What is not done is done at the next
        rotation.
        """
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(seconds)

    def _aside(self, compressed: bool = True) -> list[str]:
        """The files that were put aside, oldest first."""
        directory, base = os.path.split(self._path)
        end = r"(?:\.gz|\.zst)?" if compressed else ""
        expression = re.compile(re.escape(base) + _STAMP + end)
        names = [name for name in os.listdir(directory) if expression.fullmatch(name)]
        return [os.path.join(directory, name) for name in sorted(names, key=_age_key)]

    def _compress(self, path: str) -> None:
        target = path + _SUFFIXES[self._config.compression]
        beside = f"{target}.{os.getpid()}.tmp"
        try:
            with open(path, "rb") as plain:
                found = os.fstat(plain.fileno())
                with open(beside, "xb") as file:
                    if hasattr(os, "fchmod"):
                        os.fchmod(file.fileno(), found.st_mode & 0o777)
                    self._write(plain, file)
                    file.flush()
                    os.fsync(file.fileno())
                with FileLock().held(plain.fileno()):
                    if os.fstat(plain.fileno()).st_size != plain.tell():
                        return  # a writer goes on there: later
                    os.replace(beside, target)
                    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
                    os.unlink(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)

    def _write(self, plain: IO[bytes], file: IO[bytes]) -> None:
        if self._config.compression == "gzip":
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                shutil.copyfileobj(plain, packed, _CHUNK_BYTES)
        else:
            zstandard.ZstdCompressor(level=3, write_checksum=True).copy_stream(plain, file)


def _age_key(name: str) -> tuple[str, int]:
    """By stamp, and by number within one second."""
    found = re.search(r"\.(\d{8}-\d{6})(?:-(\d+))?(?:\.gz|\.zst)?$", name)
    assert found is not None
    return found[1], int(found[2] or 0)
