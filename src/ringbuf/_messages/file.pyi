from typing import Any

import numpy as np
import numpy.typing as npt

from ringbuf._shared.shared_file import SharedFile

KIND: bytes

def create_or_attach(path: str, granules: int, first_seq: int, checksums: bool) -> SharedFile: ...
def attach(path: Any) -> SharedFile: ...
def read_meta(
    path: str, meta: dict[str, Any], body_bytes: int
) -> tuple[int, npt.NDArray[np.uint8] | None]: ...
def aligned(content: bytes) -> npt.NDArray[np.uint8]: ...
