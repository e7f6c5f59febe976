from typing import NoReturn, final

from typing_extensions import Buffer

@final
class Mapping(Buffer):
    def __new__(cls, fd: int, size: int) -> Mapping: ...
    def __reduce__(self) -> NoReturn: ...
