"""FollowSource: the lines of files that grow, through rotation, and across restarts.

What is found and read, and in which order, is the `Follower`'s business (follower.py);
this is its two threads. One reads and puts. The other one looks, so that a file is
found and held while a put waits, however long: with an outage of the sink nothing else
would keep what is rotated away meanwhile.

Lines are put in the order of each file. A last line without a newline waits for its
end, and is taken as it is when its file has been rotated away. A line longer than
`max_line_bytes` is skipped and counted.

Needs pread, which Windows does not have.

`run` is for one thread; the counters may be read by any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from backpressure.sources.base import Put
from backpressure.sources.follower import Follower
from backpressure.sources.open_files import OpenFiles
from backpressure.sources.patterns import PathPattern
from backpressure.sources.positions import Positions

__all__ = ["FollowSource"]

# Seconds between two looks at the files: too short to notice, and a look costs some
# system calls.
_POLL_SECONDS = 0.2
# Seconds without news after which a rotated file counts as complete: its writer has
# reopened by then.
_GRACE_SECONDS = 2.0
# Seconds that the end waits for a look that is under way.
_JOIN_SECONDS = 5.0


class FollowSource:
    """Follows the files that `pattern` names: a path, or a pattern as in patterns.py.

    start: where to begin with files that are there when the pattern is followed for the
        first time: "end" or "beginning". What appears later is read from its beginning.
    positions: what is remembered; shared by all sources of a service.
    poll: seconds between two looks. grace: seconds after which a rotated file without
        news counts as complete.
    open_files, avoid: as for Follower.

    ValueError for a pattern that cannot be read.
    """

    def __init__(
        self,
        pattern: str,
        *,
        positions: Positions | None = None,
        start: str = "end",
        max_line_bytes: int = 1 << 20,
        poll: float = _POLL_SECONDS,
        grace: float = _GRACE_SECONDS,
        open_files: OpenFiles | None = None,
        avoid: Callable[[], Collection[tuple[int, int]]] = lambda: (),
    ) -> None:
        if start not in ("end", "beginning"):
            raise ValueError(f'start must be "end" or "beginning", not {start!r}')
        self.name = pattern
        self._poll = poll
        self._follower = Follower(
            PathPattern(pattern),
            positions if positions is not None else Positions(),
            start_at_end=start == "end",
            max_line_bytes=max_line_bytes,
            grace=grace,
            open_files=open_files,
            avoid=avoid,
        )
        self._failure: BaseException | None = None

    @property
    def oversized(self) -> int:
        """Lines skipped because they were too long."""
        return self._follower.oversized

    def run(self, put: Put, stopping: threading.Event) -> None:
        """As ServiceSource.

        A file that cannot be opened or read is logged once and tried again.
        """
        follower, done = self._follower, threading.Event()
        looker: threading.Thread | None = threading.Thread(
            target=self._keep_looking, args=(done,), name="forebay-look", daemon=True
        )
        try:
            follower.look(time.monotonic())
            try:
                assert looker is not None
                looker.start()
            except RuntimeError:
                looker = None  # no thread to be had: looks come between two reads
            while not stopping.is_set():
                if looker is None:
                    follower.look(time.monotonic())
                news = follower.read(put, stopping.is_set, time.monotonic())
                if news is None:
                    return
                if self._failure is not None:
                    raise self._failure
                if not news:
                    stopping.wait(self._poll)
        finally:
            done.set()
            if looker is not None and looker.ident is not None:
                looker.join(_JOIN_SECONDS)
            follower.close()

    def _keep_looking(self, done: threading.Event) -> None:
        try:
            while not done.wait(self._poll):
                self._follower.look(time.monotonic())
        except BaseException as error:
            self._failure = error
