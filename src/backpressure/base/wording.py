"""How messages word what several floors have to tell."""

from __future__ import annotations

import os

__all__ = ["reason"]


def reason(error: BaseException, where: str | None = None) -> str:
    """An exception in words: of the system's errors the file and what happened, without
    the number.

    where: what the error is about if it names no file itself.
    """
    if not isinstance(error, OSError) or not error.strerror:
        text = str(error) or type(error).__name__
        return text if where is None else f"{where}: {text}"
    name = where if error.filename is None else error.filename
    if name is None:
        return error.strerror
    # os.fsdecode takes no descriptor, which is what an error of a call like
    # os.listdir(fd) names.
    return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"
