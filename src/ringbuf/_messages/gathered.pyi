from collections.abc import Sequence
from typing import Any, final

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

class MessageTooLarge(ValueError):
    index: int
    nbytes: int
    limit: int
    def __init__(self, index: int, nbytes: int, limit: int) -> None: ...

@final
class PushProgress:
    remaining: int
    def __new__(cls, remaining: int) -> PushProgress: ...
    @property
    def pushed(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    @property
    def first_seq(self) -> int: ...

@final
class Gathered:
    def __new__(cls, messages: Sequence[bytes | str] | Any, limit: int = ...) -> Gathered: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
