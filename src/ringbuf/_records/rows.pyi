from typing import Any, final

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

@final
class Rows: ...
