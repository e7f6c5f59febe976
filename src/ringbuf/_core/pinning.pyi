import weakref
from typing import Any

def pins(owner: object) -> weakref.ref[Any] | None: ...
