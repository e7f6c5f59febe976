"""FrozenDict: a mapping in a frozen snapshot.

It can be copied, pickled, and taken apart by `dataclasses.asdict`, which a
`MappingProxyType` cannot.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

__all__ = ["FrozenDict"]

_K = TypeVar("_K")
_V = TypeVar("_V")


class FrozenDict(dict[_K, _V]):
    """A dict that refuses every change.

    >>> counts = FrozenDict({"full": 3})
    >>> counts["full"] = 4
    Traceback (most recent call last):
    TypeError: this mapping is a snapshot and cannot be changed: make a dict of it first
    >>> dict(counts) | {"full": 4}
    {'full': 4}
    """

    __slots__ = ()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("this mapping is a snapshot and cannot be changed: make a dict of it first")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[_K, _V]], tuple[dict[_K, _V]]]:
        return type(self), (dict(self),)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
