from typing import Any

TIDYING_SECONDS: float

# What other compiled modules call.
__pyx_capi__: dict[str, Any]
