"""What a tree of files looks like from outside, byte and attribute, and how two looks differ, in words."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MOST_TOLD = 4


class Look(NamedTuple):
    """One name: everything about it that a person or a program could notice."""

    kind: str
    """``file``, ``directory``, ``link`` or ``special file``."""
    mode: int
    owner: int
    group: int
    mtime_ns: int
    content: str
    """SHA-256 of a file's bytes, target of a link; empty else."""
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: str
    """The first name of the same file; its own where it has one name."""


Snapshot = dict[str, Look]
"""Path (as ``os.fsdecode`` gives it), absolute -> what is there."""


def snapshot(
    *roots: Path | str, volatile: Sequence[str] = (), without: Callable[[str], bool] | None = None
) -> Snapshot:
    """Return everything at and below ``roots``, links not followed.

    Args:
        roots: Files or directories; one that is not there gives nothing.
        volatile: Patterns (``fnmatch``) of absolute paths that are left out, with all below them.
        without: Says of an absolute path whether it is left out, with all below it.
    """
    found: Snapshot = {}
    firsts: dict[tuple[int, int], str] = {}

    def look(path: str) -> None:
        if any(fnmatch.fnmatch(path, pattern) for pattern in volatile) or (without is not None and without(path)):
            return
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        found[path] = _look(path, status, firsts)
        if stat.S_ISDIR(status.st_mode):
            for name in sorted(os.listdir(path)):
                look(os.path.join(path, name))

    for root in roots:
        look(os.fspath(root))
    return found


def _look(path: str, status: os.stat_result, firsts: dict[tuple[int, int], str]) -> Look:
    mode = stat.S_IMODE(status.st_mode)
    head = (status.st_uid, status.st_gid, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return Look("link", 0, *head, os.readlink(path), (), path)
    if stat.S_ISDIR(status.st_mode):
        return Look("directory", mode, *head, "", _xattrs(path), path)
    if not stat.S_ISREG(status.st_mode):
        return Look("special file", mode, *head, "", (), path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    same = firsts.setdefault((status.st_dev, status.st_ino), path)
    return Look("file", mode, *head, digest, _xattrs(path), same)


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    try:
        return tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
    except OSError:
        return ()


_WORDS = {
    "kind": "kind", "mode": "mode", "owner": "owner", "group": "group", "mtime_ns": "modification time",
    "content": "content", "xattrs": "extended attributes", "same_as": "hard links",
}  # fmt: skip


def differences(before: Mapping[str, Look], after: Mapping[str, Look], *, below: Path | str = "") -> list[str]:
    """Return how ``after`` differs from ``before``, a few words for each path; nothing when it does not."""
    told = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        name = os.path.relpath(path, below) if below else path
        if old is None or new is None:
            told.append(f"{name} {'appeared' if old is None else 'is gone'}")
            continue
        if old.kind != new.kind:
            told.append(f"{name}: a {old.kind} became a {new.kind}")
            continue
        told.append(f"{name}: {', '.join(_changed(old, new))} changed")
    return told


def _changed(old: Look, new: Look) -> list[str]:
    changed = []
    for field, word in _WORDS.items():
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            changed.append(f"mode ({was:04o} -> {now:04o})" if field == "mode" else word)
    return changed


def shortened(told: Iterable[str]) -> str:
    """Return the first of some words, and how many more there are."""
    words = list(told)
    more = len(words) - MOST_TOLD
    return "; ".join(words[:MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def moved(look: Mapping[str, Look], source: Path | str, target: Path | str) -> Snapshot:
    """Return the part of a look that lies at ``source`` as if it lay at ``target``, ``source`` itself left out."""
    head, new = f"{source}/", f"{target}/"
    found = {}
    for path, each in look.items():
        if path.startswith(head):
            same = new + each.same_as.removeprefix(head) if each.same_as.startswith(head) else each.same_as
            found[new + path.removeprefix(head)] = each._replace(same_as=same)
    return found
