from typing import Any

from typing_extensions import Buffer as _Buffer

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

def count_lines(chunk: _Buffer, final: bool = True, limit: int = ...) -> int: ...
def expect_lines(chunk: _Buffer, final: bool = True, limit: int = ...) -> tuple[int, bool]: ...
