from typing import Any

from typing_extensions import disjoint_base

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

@disjoint_base
class Waiting: ...
