"""systemd's notification protocol (sd_notify(3)): a datagram for each change of state.

Does nothing under another service manager.
"""

from __future__ import annotations

import os
import socket

__all__ = ["notify", "watchdog_seconds"]


def notify(*lines: str) -> None:
    """Send assignments like "READY=1".

    Errors are ignored: the service is more important than its status.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(lines).encode(), address)
    except OSError:
        pass


def watchdog_seconds() -> float | None:
    """Seconds within which "WATCHDOG=1" has to come; None: there is no watchdog."""
    text = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) / 1e6 if watched and text.isdecimal() and int(text) else None
