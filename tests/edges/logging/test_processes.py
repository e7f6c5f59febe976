"""BufferHandler at the end of the interpreter, and in forked processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.processes import environment, run_python

LOGGING = """
import logging, os, sys, warnings
warnings.simplefilter("ignore")  # that a process with threads forks is the point
from backpressure.logging import BufferHandler
handler = BufferHandler(sink=sys.argv[1])
logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
"""


def run_logging(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that logs to `path`."""
    return run_python(LOGGING + textwrap.dedent(code), str(path))


def test_at_the_end_of_the_interpreter_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import atexit, logging, sys, threading
        from backpressure.logging import BufferHandler
        handler = BufferHandler(sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        class Late:
            def __del__(self, info=logging.info):
                try:
                    info("from a finaliser")
                except AttributeError:
                    pass  # on some builds logging itself is gone by then
        late = Late()
        def background():
            for n in range(1000):
                logging.info("thread %d", n)
        threading.Thread(target=background).start()
        atexit.register(logging.info, "from atexit")
        for n in range(1000):
            logging.info("main %d", n)
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("main")] == [f"main {n}" for n in range(1000)]
    assert [line for line in lines if line.startswith("thread")] == [
        f"thread {n}" for n in range(1000)
    ]
    assert "from atexit" in lines


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_children_log_as_well(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import logging, os, sys, threading, warnings
        warnings.simplefilter("ignore")  # that a process with threads forks is the point
        from backpressure.logging import BufferHandler
        handler = BufferHandler(sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        over = threading.Event()
        def busy():  # so that locks are held at the moment of the fork
            while not over.is_set():
                handler.buffer.stats()
                logging.debug("x")
        threads = [threading.Thread(target=busy) for _ in range(3)]
        [thread.start() for thread in threads]
        logging.info("parent before")
        children = []
        for child in range(5):
            pid = os.fork()
            if pid == 0:
                for n in range(100):
                    logging.info("child %d %d", child, n)
                logging.shutdown()
                os._exit(0 if handler.refused == {} else 3)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        over.set()
        logging.info("parent after")
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    assert lines.count("parent before") == lines.count("parent after") == 1, (
        "what the parent had is the parent's"
    )
    for child in range(5):
        mine = [line for line in lines if line.startswith(f"child {child} ")]
        assert mine == [f"child {child} {n}" for n in range(100)]
    assert len(lines) == 502


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_the_directory_is_the_parents(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import logging, os, sys, warnings
        warnings.simplefilter("ignore")
        from backpressure.logging import BufferHandler
        config = {"directory": sys.argv[2], "lane_bytes": "1M", "durability": "commit",
                  "when_full": "drop_lowest_priority"}
        handler = BufferHandler(config, sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        logging.info("parent before")
        pid = os.fork()
        logging.info("%s after", "parent" if pid else "child")
        assert (handler.buffer.config.directory is None) == (pid == 0)
        if pid == 0:
            logging.shutdown()
            os._exit(0 if handler.refused == {} else 3)
        assert os.waitpid(pid, 0)[1] == 0
        logging.info("parent at last")
        handler.flush()
        assert handler.buffer.stats().accepted == handler.buffer.stats().acked == 3
        """,
        str(path),
        str(tmp_path / "buffer"),
    )
    assert done.returncode == 0, done.stderr
    *lines, warning = sorted(path.read_text().splitlines())
    assert lines == ["child after", "parent after", "parent at last", "parent before"]
    assert "is a fork: its log lines are in memory" in warning


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_children_of_multiprocessing_log_as_well(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_logging(
        """
        import multiprocessing
        def work(n):
            logging.info("child %d", n)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(n,)) for n in range(4)]
        [child.start() for child in children]
        [child.join() for child in children]
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.read_text().splitlines()) == [f"child {n}" for n in range(4)]


PROGRAM = """
import concurrent.futures, logging, multiprocessing, sys, threading, time, warnings
warnings.simplefilter("ignore")
from backpressure.logging import BufferHandler

def configure():
    if not logging.getLogger().handlers:
        logging.basicConfig(
            handlers=[BufferHandler(sink=sys.argv[1])], format="%(message)s", level="INFO"
        )

def late(name):
    time.sleep(0.2)
    logging.info("late %d", name)

def work(name):
    global executor
    configure()
    for n in range(200):
        logging.info("child %d line %d", name, n)
    # The process waits for both of these.
    threading.Thread(target=late, args=(name,)).start()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.submit(late, name)

if __name__ == "__main__":
    configure()
    context = multiprocessing.get_context(sys.argv[2])
    children = [context.Process(target=work, args=(name,)) for name in range(3)]
    [child.start() for child in children]
    for n in range(200):
        logging.info("parent line %d", n)
    [child.join() for child in children]
    assert [child.exitcode for child in children] == [0, 0, 0]
    logging.shutdown()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.platform
def test_processes_that_share_a_file_lose_no_line_and_cut_none(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    program, path = tmp_path / "program.py", tmp_path / "app.log"
    program.write_text(PROGRAM.replace("sys.argv[1]", repr(str(path))))
    done = subprocess.run(
        [sys.executable, str(program), str(path), method],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    for name in ("parent", "child 0", "child 1", "child 2"):
        mine = [line for line in lines if line.startswith(f"{name} ")]
        assert mine == [f"{name} line {n}" for n in range(200)]
    assert len(lines) == 806
    assert all(lines.count(f"late {name}") == 2 for name in range(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_a_child_whose_buffer_has_no_consumer_says_so_and_ends_at_once(tmp_path: Path) -> None:
    done = run_python(
        """
        import logging, os, sys, time, warnings
        warnings.simplefilter("ignore")
        from backpressure import BufferManager
        from backpressure.logging import BufferHandler
        buffer = BufferManager()
        handler = BufferHandler(buffer)
        logger = logging.Logger("x")
        logger.addHandler(handler)
        logger.info("parent's")
        if (pid := os.fork()) == 0:
            logger.info("child's")
            assert handler.buffer is not buffer
            begun = time.monotonic()
            handler.close()
            assert time.monotonic() - begun < 2
            stats = handler.buffer.stats()
            assert stats.closed and stats.dropped == {"closed": 1}
            logger.info("late")
            assert handler.refused == {"closed": 1}
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        batch = buffer.get_batch()
        assert batch.tolist() == [b"parent's"]
        batch.ack()
        handler.close()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "no consumer of its parent's reads" in done.stderr
    assert "closed with 1 events not delivered" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_a_child_of_a_child_and_one_that_never_logs(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_logging(
        """
        def forked(work):
            pid = os.fork()
            if pid == 0:
                work()
                logging.shutdown()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        def child():
            logging.info("child")
            forked(lambda: logging.info("grandchild"))
            forked(lambda: None)
            logging.info("child again")
        logging.info("parent")
        forked(child)
        forked(lambda: None)
        logging.info("parent again")
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.read_text().splitlines()) == [
        "child",
        "child again",
        "grandchild",
        "parent",
        "parent again",
    ]
