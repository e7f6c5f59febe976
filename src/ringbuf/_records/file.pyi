import os
from typing import Any, final

import numpy as np

from ringbuf._shared.shared_file import SharedFile

def create_or_attach(
    path: str | os.PathLike[str], slots: int, dtype: np.dtype[Any]
) -> SharedFile: ...
def attach(path: str | os.PathLike[str]) -> tuple[SharedFile, int, np.dtype[Any]]: ...
def body_size(slots: int, itemsize: int) -> int: ...

@final
class SharedRuns:
    def __init__(self, file: SharedFile, slots: int, itemsize: int) -> None: ...
