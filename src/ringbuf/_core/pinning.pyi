import weakref
from typing import Any

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

def pins(owner: object) -> weakref.ref[Any] | None: ...
