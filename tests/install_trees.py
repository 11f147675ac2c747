"""Trees on disk for the tests of the installer: make one, look at one, strategies for them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ted.install import Attributes, Transaction

_TIMES = st.integers(0, 2**31).map(lambda s: s * 10**9 + 123_456_789)
_NAMES = st.sampled_from([b"a", b"b", b"c.txt", b"\xff\xfe", b"d e", "é".encode()])
_MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o444, 0o000])
_DIRECTORY_MODES = st.sampled_from([0o755, 0o700, 0o555, 0o2775, 0o1777])
_OWNERS = st.sampled_from([0, 1, 1000]) if os.geteuid() == 0 else st.just(os.geteuid())


@dataclass
class Thing:
    kind: str  # f d l h
    mode: int = 0o644
    mtime_ns: int = 10**18
    owner: int = 0
    data: bytes = b""
    target: bytes = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)


Tree = dict[bytes, Thing]
FILES = st.builds(
    Thing, st.just("f"), _MODES, _TIMES, _OWNERS, st.binary(max_size=40),
    xattrs=st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(min_size=1, max_size=5), max_size=2),
)  # fmt: skip
LINKS = st.builds(
    Thing, st.just("l"), st.just(0), _TIMES, _OWNERS, target=st.sampled_from([b"a", b"../b", b"nowhere", b"a/b"])
)
DIRECTORIES = st.builds(Thing, st.just("d"), _DIRECTORY_MODES, _TIMES, _OWNERS)


@st.composite
def trees(draw: Any, max_things: int = 8) -> Tree:
    """Draw a tree: sorted by components, every parent a directory in it."""
    tree: Tree = {}
    for _ in range(draw(st.integers(0, max_things))):
        parents = [b""] + [path for path, thing in tree.items() if thing.kind == "d"]
        parent = draw(st.sampled_from(parents))
        path = (parent + b"/" if parent else b"") + draw(_NAMES)
        if path in tree:
            continue
        first = [p for p, thing in tree.items() if thing.kind == "f"]
        if first and draw(st.integers(0, 4)) == 0:
            tree[path] = Thing("h", target=draw(st.sampled_from(first)))
        else:
            tree[path] = draw(st.one_of(FILES, FILES, LINKS, DIRECTORIES))
    return _ordered(tree)


def _ordered(tree: Tree) -> Tree:
    """Sort by components and let each hard link's first name come first."""
    ordered = dict(sorted(tree.items(), key=lambda item: item[0].split(b"/")))
    firsts: dict[bytes, bytes] = {}
    for path, thing in list(ordered.items()):
        if thing.kind == "h" and thing.target > path:
            first = firsts.setdefault(thing.target, path)
            if first == path and thing.target.split(b"/") > path.split(b"/"):
                ordered[path], ordered[thing.target] = ordered[thing.target], Thing("h", target=path)
    for path, thing in list(ordered.items()):
        if thing.kind == "h" and ordered[thing.target].kind == "h":
            thing.target = ordered[thing.target].target
        if thing.kind == "h" and (thing.target == path or thing.target.split(b"/") > path.split(b"/")):
            ordered[path] = Thing("f", data=b"x")
    return ordered


def make(root: Path, tree: Tree) -> None:
    """Make ``tree`` below the directory ``root`` without ted."""
    base = os.fsencode(root)
    for path, thing in tree.items():
        full = os.path.join(base, path)
        if thing.kind == "d":
            os.mkdir(full)
        elif thing.kind == "l":
            os.symlink(thing.target, full)
            os.utime(full, ns=(thing.mtime_ns, thing.mtime_ns), follow_symlinks=False)
            os.chown(full, thing.owner, thing.owner, follow_symlinks=False)
        elif thing.kind == "h":
            os.link(os.path.join(base, thing.target), full)
        else:
            with open(full, "wb") as file:
                file.write(thing.data)
            _dress(full, thing)
    for path, thing in reversed(tree.items()):
        if thing.kind == "d":
            _dress(os.path.join(base, path), thing)


def _dress(full: bytes, thing: Thing) -> None:
    os.chown(full, thing.owner, thing.owner)
    for name, value in thing.xattrs.items():
        os.setxattr(full, name, value)
    os.chmod(full, thing.mode)
    os.utime(full, ns=(thing.mtime_ns, thing.mtime_ns))


def snapshot(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return everything below ``root``, itself included: kind, attributes, content, and which names share a file."""
    found: dict[bytes, tuple[Any, ...]] = {}
    names: dict[tuple[int, int], bytes] = {}

    def look(full: bytes, path: bytes) -> None:
        status = os.lstat(full)
        same = names.setdefault((status.st_dev, status.st_ino), path)
        head = (stat.S_IFMT(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if stat.S_ISLNK(status.st_mode):
            found[path] = (*head, os.readlink(full))
            return
        xattrs = {n: os.getxattr(full, n) for n in os.listxattr(full)}
        if stat.S_ISDIR(status.st_mode):
            found[path] = (*head, stat.S_IMODE(status.st_mode), xattrs)
            for name in sorted(os.listdir(full)):
                look(os.path.join(full, name), os.path.join(path, name) if path else name)
        else:
            with open(full, "rb") as file:
                data = file.read()
            found[path] = (*head, stat.S_IMODE(status.st_mode), xattrs, data, same)

    look(os.fsencode(root), b"")
    return found


def plan(transaction: Transaction, root: Path, tree: Tree, *, delete: list[bytes] | None = None) -> None:
    """Plan ``tree`` at ``root``, every path of it, and the deletion of ``delete``."""
    where = str(root)
    for path in delete or []:
        transaction.delete(where, path)
    transaction.mkdir(where, b"", attributes=Attributes(mtime_ns=5 * 10**17))
    for path, thing in tree.items():
        held = Attributes(thing.mode, thing.owner, thing.owner, thing.mtime_ns, thing.xattrs)
        if thing.kind == "d":
            transaction.mkdir(where, path, attributes=held, replace_link=True)
        elif thing.kind == "l":
            transaction.symlink(where, path, thing.target,
                                attributes=Attributes(None, thing.owner, thing.owner, thing.mtime_ns))  # fmt: skip
        elif thing.kind == "h":
            transaction.hardlink(where, path, thing.target)
        else:
            transaction.write(where, path, [thing.data], size=len(thing.data), attributes=held)
