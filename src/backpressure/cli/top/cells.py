"""The tables of `forebay top` and the numbers in them, for 80 columns.

"-" stands for what is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["bar", "make_table", "number", "seconds", "short"]

_BAR_WIDTH = 10
_LONG = 99_999.5
_UNITS = "kMGTPE"


def make_table(*names: str) -> Table:
    """A table with these columns and no rows."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=0)
    for name in names:
        table.add_column(name, justify="right")
    return table


def number(value: Any, pattern: str = ",.0f") -> str:
    """A number as text; None is "-".

    JSON has no infinity, so a server writes null where there is no limit, as for what
    is missing.
    """
    return "-" if value is None else format(value, pattern)


def short(value: Any) -> str:
    """A whole number in at most seven places."""
    if value is None or abs(value) < _LONG:
        return number(value)
    power = 1
    while abs(value) >= 999.95 * 1000.0**power and power < len(_UNITS):
        power += 1
    return f"{value / 1000.0**power:.4g}{_UNITS[power - 1]}"


def seconds(value: Any) -> str:
    """A time, in the unit that reads best."""
    if value is None:
        return "-"
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.0f} ms"


def bar(used: Any, capacity: Any) -> str:
    """How full something is, as a bar and a percentage."""
    if used is None or not capacity:
        return "-"
    share = used / capacity
    return f"{'█' * round(share * _BAR_WIDTH):<{_BAR_WIDTH}} {share:4.0%}"
