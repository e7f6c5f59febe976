"""How messages word what several floors have to tell."""

from __future__ import annotations

import os

__all__ = ["as_text", "reason", "said"]


def as_text(text: str) -> str:
    """`text` as UTF-8 can have it: what stands for a byte of a path or a name that is
    none, and half of a surrogate pair, is shown escaped.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def said(error: object) -> str:
    """What an error, or what stands for one, says of itself; else its kind."""
    try:
        text = str(error)
    except Exception:  # what a sink raises need not be able to say what it is
        text = ""
    return text or type(error).__name__


def reason(error: BaseException, where: str | None = None) -> str:
    """An exception in words: of the system's errors the file and what happened, without
    the number.

    where: what the error is about if it names no file itself.
    """
    if not isinstance(error, OSError) or not error.strerror:
        text = said(error)
        return text if where is None else f"{where}: {text}"
    name = where if error.filename is None else error.filename
    if name is None:
        return error.strerror
    # os.fsdecode takes no descriptor, which is what an error of a call like
    # os.listdir(fd) names.
    return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"
