"""Whether all of a request's body has come.

A server that takes what follows `Connection: Upgrade` for another protocol, as uvicorn
with httptools does, gives the app an empty body, and reads the real one as a further
request. The app can tell by what the head has announced. To such a request the answer
has to be an error, and the end of the connection: what follows on it is no request.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["missing_body"]


def missing_body(headers: Iterable[tuple[bytes, bytes]], seen: int) -> str | None:
    """What a body lacks that has ended after `seen` bytes, in words; or None."""
    length, is_chunked, is_offer = None, False, False
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() else None
        elif name == b"transfer-encoding":
            is_chunked = True
        elif name == b"upgrade":
            is_offer = True
    if length is not None and seen < length:
        return (
            f"only {seen:,} of the {length:,} bytes that Content-Length announces came"
            f"{': send it without Upgrade' if is_offer else ''}"
        )
    if is_chunked and is_offer and not seen:
        # An empty body may be meant. An error costs nothing then.
        return "no body came: send it without Upgrade"
    return None
