"""Short, printable text for messages, from values and names of files and users."""

import reprlib
from collections.abc import Sequence
from typing import Any


class _Short(reprlib.Repr):
    """``repr`` with bounded size and time, also for subclasses of the built-in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = 300

    def repr1(self, x: Any, level: int) -> str:
        for kind in (dict, list, tuple, set, frozenset, str, int):
            if isinstance(x, kind):
                return getattr(self, f"repr_{kind.__name__}")(x, level)
        return self.repr_instance(x, level)

    def repr_int(self, x: int, level: int) -> str:
        # Python raises for decimal conversion of integers with more than 4,300 digits.
        return repr(x) if x.bit_length() <= 256 else f"<integer of {x.bit_length()} bits>"


_SHORT = _Short()


def shown(value: Any, limit: int = 400) -> str:
    """``repr(value)`` in at most ``limit`` characters, in bounded time for any nesting."""
    text = _SHORT.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """The text with escapes for characters that a terminal interprets or cannot print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some_of(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first of some names; "..." stands for the others."""
    return between.join(names[:most]) + (f"{between}..." if len(names) > most else "")
