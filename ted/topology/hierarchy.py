"""The routing hierarchy as a person writes it, and as routing asks it.

Rules:
 * A hierarchy is a list; an item is a name, or a mapping of one name to the list of those below it.
 * It may be of any depth.
 * Every mistake is found, none stops the reading of the rest.
 * Nothing here recurses: an inventory cannot be nested so deep that it breaks the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ted.topology.model import HierarchyItem

Mistakes = list[tuple[str, str | None]]


def parse_hierarchy(value: object) -> tuple[tuple[HierarchyItem, ...], Mistakes]:
    """Return the hierarchy and the mistakes in it, each ``(message, hint)``.

    Names are not judged here: whether a host exists, or stands twice, is for ``routing``.
    """
    mistakes: Mistakes = []
    flat: list[tuple[str, int]] = []  # name, and where its sender stands in this list (-1: Distributor)
    waiting: list[tuple[object, int]] = [(value, -1)]
    while waiting:
        level, sender = waiting.pop()
        for item in _items(level, mistakes):
            name, below = _item(item, mistakes)
            if name is not None:
                flat.append((name, sender))
                waiting += [(below, len(flat) - 1)] if below is not None else []
    return _nested(flat), mistakes


def walk(hierarchy: tuple[HierarchyItem, ...], top: str) -> Iterator[tuple[str, str]]:
    """Yield every ``(sender, receiver)`` of a hierarchy that hangs below ``top``, senders first."""
    waiting = [(top, item) for item in reversed(hierarchy)]
    while waiting:
        sender, item = waiting.pop()
        yield sender, item.name
        waiting += [(item.name, child) for child in reversed(item.children)]


def _items(level: object, mistakes: Mistakes) -> list[object]:
    if isinstance(level, list | tuple):
        return list(level)
    mistakes.append((f"{_short(level)} is not a list", f"write [{_short(level)}]"))
    return []


def _item(item: object, mistakes: Mistakes) -> tuple[str | None, object | None]:
    if isinstance(item, str) and item:
        return item, None
    if isinstance(item, Mapping) and len(item) == 1:
        name, below = next(iter(item.items()))
        if isinstance(name, str) and name:
            return name, below
    mistakes.append((f"{_short(item)} is neither a name nor a mapping of one name to a list", "e.g. - s01: [s02, s03]"))
    return None, None


def _nested(flat: list[tuple[str, int]]) -> tuple[HierarchyItem, ...]:
    """Build from the end, so that everything below an item is there before the item itself."""
    below: dict[int, list[HierarchyItem]] = {}
    for position in range(len(flat) - 1, -1, -1):
        name, sender = flat[position]
        children = tuple(reversed(below.pop(position, [])))
        below.setdefault(sender, []).append(HierarchyItem(name, children))
    return tuple(reversed(below.get(-1, [])))


def _short(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deep"
    return text if len(text) <= 80 else f"{text[:77]}..."
