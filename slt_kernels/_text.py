"""Values and names from files and users as text for messages: short, and printable."""

import reprlib
from typing import Any


class _Short(reprlib.Repr):
    """``repr`` of bounded size and time; subclasses of the built-in containers are bounded as well."""

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
        # Python refuses to write integers of more than 4,300 digits in decimal.
        return repr(x) if x.bit_length() <= 256 else f"<integer of {x.bit_length()} bits>"


_SHORT = _Short()


def shown(value: Any, most: int = 400) -> str:
    """``repr(value)`` in at most ``most`` characters, in bounded time whatever the value is nested of."""
    text = _SHORT.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """The text with escapes for what a terminal would interpret or cannot print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
