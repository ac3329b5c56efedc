"""Text from files, tasks and devices as a terminal may show it."""

from __future__ import annotations

import unicodedata

_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Categories of characters that steer a terminal, turn the direction of a line, or show nothing."""


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out: they are shown, and steer no terminal.

    Args:
        text: any text; line breaks and tabs stay.

    Example:
        >>> printable("\x1b[2Jgone")
        '\\x1b[2Jgone'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if char not in "\n\t" and unicodedata.category(char) in _UNSEEN else char
        for char in text
    )
