"""QuickFormat: the lines of logging.Formatter, for less."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["QuickFormat"]

# Programs replace them, to write times, messages or whole lines their own way.
_FORMATTER: Final = logging.Formatter
_STYLE: Final = logging.PercentStyle
_FORMAT: Final = _FORMATTER.format
_FORMAT_TIME: Final = _FORMATTER.formatTime
_FORMAT_MESSAGE: Final = _FORMATTER.formatMessage
_USES_TIME: Final = _FORMATTER.usesTime
_STYLE_FORMAT: Final = _STYLE.format
# What a formatter has of its own that QuickFormat reads each time.
_READ: Final = frozenset(
    {"_style", "_fmt", "datefmt", "converter", "default_time_format", "default_msec_format"}
)
_ONLY_MESSAGE: Final = "%(message)s"


class QuickFormat:
    """`logging.Formatter.format` without what is the same for every record, and with
    the text of the present second kept: writing the time is a large part of the work.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        self.formatter: Final = formatter
        self._own: Final = getattr(formatter, "__dict__", {})
        # What was found fit, and how many attributes the formatter had then.
        self._attributes = -1
        self._style: object = None
        self._style_own: dict[str, object] = {}
        self._pattern = ""
        self._uses_time = True
        # The second, the formatter's converter and pattern, and the text. Replaced as a
        # whole, so any thread may read it.
        self._kept: tuple[float | None, object, str, str] = (None, None, "", "")

    def format(self, record: logging.LogRecord) -> str:
        """As the formatter's, to the letter."""
        formatter = self.formatter
        if (
            record.exc_info
            or record.exc_text
            or record.stack_info
            or _FORMATTER.format is not _FORMAT
            or _FORMATTER.formatMessage is not _FORMAT_MESSAGE
            or (
                (
                    len(self._own) != self._attributes
                    or (style := formatter._style) is not self._style
                    or style._fmt is not self._pattern
                    or self._style_own["_defaults"]
                )
                and not self._is_fit()
            )
        ):
            return formatter.format(record)
        record.message = message = record.getMessage()
        pattern = self._pattern
        if pattern == _ONLY_MESSAGE:
            return message
        if self._uses_time:
            if _FORMATTER.formatTime is not _FORMAT_TIME:
                return formatter.format(record)
            record.asctime = self._time(record)
        try:
            return pattern % record.__dict__
        except KeyError:
            return formatter.formatMessage(record)  # it says which

    def _is_fit(self) -> bool:
        """Whether the quick way is this formatter's, as it is now.

        It must be a plain Formatter with a plain "%" style: that writes the same text
        for every time within a second, but for the milliseconds.
        """
        formatter = self.formatter
        self._attributes = -1
        if not (
            type(formatter) is _FORMATTER
            and _FORMATTER.formatTime is _FORMAT_TIME
            and _FORMATTER.usesTime is _USES_TIME
            and _READ.issuperset(self._own)
            and type(style := formatter._style) is _STYLE
            and _STYLE.format is _STYLE_FORMAT
            and vars(style).keys() == {"_fmt", "_defaults"}
            and not vars(style)["_defaults"]
            and type(style._fmt) is str
        ):
            return False
        self._style, self._style_own, self._pattern = style, vars(style), style._fmt
        self._uses_time = formatter.usesTime()
        self._attributes = len(self._own)
        return True

    def _time(self, record: logging.LogRecord) -> str:
        formatter = self.formatter
        converter, datefmt = formatter.converter, formatter.datefmt
        pattern = datefmt or formatter.default_time_format
        second = record.created // 1.0
        kept_second, kept_converter, kept_pattern, text = self._kept
        if second != kept_second or converter is not kept_converter or pattern != kept_pattern:
            text = time.strftime(pattern, converter(record.created))
            # These two use whole seconds only. Another converter may use the fraction.
            if converter is time.localtime or converter is time.gmtime:
                self._kept = (second, converter, pattern, text)
        if not datefmt and formatter.default_msec_format:
            text = formatter.default_msec_format % (text, record.msecs)
        return text
