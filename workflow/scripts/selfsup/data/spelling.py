"""How names of files and classes are spelt: bytes that are no UTF-8, and letters that are bytes in two ways."""

import os
import unicodedata
from functools import lru_cache


def as_text(name: str) -> str:
    """Return a member's name as text that can be printed and written: \\xe9 for a byte that is no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def utf8(name: str) -> str:
    """Return a name that the system gave as it is in UTF-8, which files' names are, whatever the locale says."""
    return os.fsencode(name).decode(errors="surrogateescape")


def composed(name: str) -> str:
    """Return what spellings of one name have in common: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", as_text(name))


same = lru_cache(maxsize=10_000)(composed)  # of classes: asked for each member
