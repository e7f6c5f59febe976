from typing import Any, NoReturn

import numpy as np
from typing_extensions import disjoint_base

# What other compiled modules call.
__pyx_capi__: dict[str, Any]

@disjoint_base
class RecordRingBase:
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def capacity(self) -> int: ...
    @property
    def path(self) -> str | None: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...
