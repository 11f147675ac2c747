"""Names: which are allowed, and which one was probably meant.

Rules:
 * Nodes, channels and distributions become directory names: 1 to 128 characters of
   ``A-Z a-z 0-9 . _ @ + -``, not starting with a dot.
 * A suggestion is only made where one is near.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,127}", re.ASCII)

NAME_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ @ + -, not starting with a dot"


def is_name(text: object) -> bool:
    """Say whether ``text`` may name a node, a channel or a distribution."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def nearest(word: str, known: Iterable[str], *, near: float = 0.7) -> str | None:
    """Return the one of ``known`` that is nearest to ``word``, ``None`` where none is near (1: the very same)."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=near)), None)


def suggestion(word: str, known: Iterable[str], *, near: float = 0.7) -> str | None:
    """Return ``did you mean NAME?`` where one of ``known`` is near ``word``."""
    found = nearest(word, known, near=near)
    return f"did you mean {found}?" if found is not None else None
