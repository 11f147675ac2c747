"""Finding the recipe of a stream: trying the likeliest compressors on it until one gives its very bytes.

Rules:
 * A recipe counts only when it gave every byte of the stream here.
 * What is tried is bounded by number, never by time, so that the same files always give the same answer. A wrong guess
   ends at the first byte that differs, mostly within the first piece.
"""

from __future__ import annotations

from ted.content.opening.codecs import COMPRESSOR_ERRORS, Codec, Read, Recipe, gives, likely_recipes

_GIVE_UP_AFTER = 6
_TELLING_BYTES = 512


class Prover:
    """Finds recipes for the streams of one file, which mostly have the same."""

    def __init__(self) -> None:
        self._known: dict[Codec, Recipe] = {}
        self._failed = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether so many streams in a row had no recipe that the rest of the file is not worth trying."""
        return self._failed >= _GIVE_UP_AFTER

    def recipe(
        self, codec: Codec, hint: int, plain: Read, plain_bytes: int, raw: Read, raw_bytes: int
    ) -> Recipe | None:  # fmt: skip
        """Return what gives the raw bytes of the plain ones, ``None`` if nothing that is tried does."""
        for recipe in likely_recipes(codec, hint, self._known.get(codec)):
            try:
                found = gives(recipe, plain, plain_bytes, raw, raw_bytes)
            except COMPRESSOR_ERRORS:
                found = False
            if found:
                self._failed = 0
                if raw_bytes >= _TELLING_BYTES or codec not in self._known:
                    self._known[codec] = recipe
                return recipe
        if raw_bytes >= _TELLING_BYTES:
            self._failed += 1
        return None
