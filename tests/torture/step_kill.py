"""Kill a process after its k-th instruction, for every k: the strictest reading of
"killed at any instruction".

A forked child stops before the operation and after it; the parent lets it go on by
single steps (ptrace) and kills it after k of them. What it leaves in the shared ring is
then judged by the parent. Linux on x86-64 and ARM, where ptrace is allowed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable

_TRACEME, _CONT, _SINGLESTEP = 0, 7, 9
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace({request}): {os.strerror(code)}")


class Stepped:
    """A child that stands still after `steps` instructions of its operation, alive: no
    signal reaches it but SIGKILL.

    within: whether it stands within the operation; False: that had ended before.
    """

    def __init__(self, setup: Callable[[], Callable[[], object]], steps: int) -> None:
        self.pid = pid = os.fork()
        if pid == 0:
            try:
                operation = setup()
                # A collection within it would move all that follows, in one child and
                # not in the next.
                gc.disable()
                # Plain ints, found beforehand: with an enum and its look-ups the stops
                # alone take 3,300 instructions.
                kill, me, stop = os.kill, os.getpid(), int(signal.SIGSTOP)
                _ptrace(_TRACEME, 0)
                kill(me, stop)
                operation()
                kill(me, stop)
            finally:
                os._exit(1)
        self.within = True
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(
                "the child ended before its operation: ptrace is not allowed here, or setup failed"
            )
        for _ in range(steps):
            if not self.step():
                break

    def step(self) -> bool:
        """One instruction more; False if the operation has ended."""
        _ptrace(_SINGLESTEP, self.pid)
        _, status = os.waitpid(self.pid, 0)
        self.within = os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP
        return self.within

    def finish(self) -> None:
        """Let it go on to the end of its operation."""
        if self.within:
            _ptrace(_CONT, self.pid)
            _, status = os.waitpid(self.pid, 0)
            if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGSTOP:
                raise RuntimeError(f"the operation failed: {status}")
            self.within = False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def run_and_kill(setup: Callable[[], Callable[[], object]], steps: int) -> bool:
    """Let a child run `setup()`, then what it returned, and kill it after that many
    instructions of it.

    Returns True if it was killed within the operation, False if that had ended before.
    """
    child = Stepped(setup, steps)
    child.kill()
    return child.within


def steps_until(setup: Callable[[], Callable[[], object]], done: Callable[[], object]) -> int:
    """After how many instructions of its operation a child has first done what can be
    seen from here; it is killed there.
    """
    child = Stepped(setup, 0)
    steps = 0
    try:
        while not done():
            if not child.step():
                raise RuntimeError("the operation ended before it was done")
            steps += 1
    finally:
        child.kill()
    return steps


def is_allowed() -> bool:
    """Whether this machine lets a parent trace its child."""
    try:
        return run_and_kill(lambda: lambda: None, 1)
    except (OSError, RuntimeError):
        return False
