"""A rebuild looks first: what looks as it did is not read again, and whatever changed is noticed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ted.content.builder import BuildResult, RevisionBuilder
from ted.content.walk import Excludes, SourceTree
from ted.errors import BuildError

YOUNG_S = 2.1


class Place:
    """A source, and where revisions of it are built."""

    def __init__(self, root: Path) -> None:
        self.source, self.work, self.cache = root / "source", root / "work" / "hq" / "lib", root / "cache"
        (self.source / "d" / "inner").mkdir(parents=True)
        for name in ("a", "d/b", "d/inner/c"):
            (self.source / name).write_text(f"content of {name}")
        (self.source / "link").symlink_to("a")
        os.link(self.source / "a", self.source / "second")
        (self.source / "skipped.tmp").write_text("x")
        self.given = b"given"

    def build(self, *, exclude: tuple[str, ...] = ("*.tmp",), options: dict[str, Any] | None = None,
              force: bool = False, check: bool = False) -> BuildResult:  # fmt: skip
        with RevisionBuilder(self.work, "hq", "lib", "file", {}, options or {}, cache=self.cache) as builder:
            builder.add_tree(self.source, "data/0", contents_only=True, exclude=exclude)
            builder.add_bytes("data/given", self.given)
            return builder.finish(force=force, check=check)

    def reads(self, build: Callable[[], BuildResult]) -> bool:
        """Whether a build went through the source: it writes its cache anew then."""
        before = self.cache.stat().st_ino
        self.kept = open(self.cache, "rb")  # noqa: SIM115 -- its inode must not be given to the next one
        try:
            build()
            return self.cache.stat().st_ino != before
        finally:
            self.kept.close()


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that is old enough to be remembered, and has been built."""
    root = tmp_path_factory.mktemp("aged")
    place = Place(root)
    time.sleep(YOUNG_S)
    assert place.build().changed
    return root


@pytest.fixture
def place(aged: Path) -> Place:
    place = Place.__new__(Place)
    place.source, place.work, place.cache = aged / "source", aged / "work" / "hq" / "lib", aged / "cache"
    place.given = b"given"
    return place


def test_what_looks_the_same_is_not_read_and_gives_the_same_revision(place: Place) -> None:
    first = place.build()
    assert not place.reads(place.build)
    again = place.build()
    assert not again.changed
    assert (again.record, again.record_bytes, again.files) == (first.record, first.record_bytes, 5)
    assert not place.build(check=True).changed
    (place.source / "skipped.tmp").write_text("what is excluded does not count")
    assert not place.reads(place.build)
    assert place.build(force=True).changed


def _same_size_same_time(path: Path) -> None:
    status = path.stat()
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_text(path.read_text().swapcase())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content of the same size and time": lambda source: _same_size_same_time(source / "d" / "inner" / "c"),
    "another file of the same size and time": lambda source: _replaced(source / "d" / "b"),
    "mode": lambda source: (source / "a").chmod(0o600),
    "mode of a directory": lambda source: (source / "d").chmod(0o700),
    "time": lambda source: os.utime(source / "d" / "b", ns=(1, 1)),
    "time of a directory": lambda source: os.utime(source / "d" / "inner", ns=(1, 1)),
    "extended attribute": lambda source: os.setxattr(source / "a", "user.ted", b"x"),
    "new file": lambda source: (source / "d" / "new").touch(),
    "file gone": lambda source: (source / "d" / "b").unlink(),
    "new empty directory": lambda source: (source / "d" / "empty").mkdir(),
    "renamed": lambda source: (source / "d" / "b").rename(source / "d" / "bb"),
    "link": lambda source: ((source / "link").unlink(), (source / "link").symlink_to("d")),
    "one name less": lambda source: ((source / "second").unlink(), shutil.copy2(source / "a", source / "second")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(place: Place, tmp_path: Path, change: str) -> None:
    copy = Place.__new__(Place)
    shutil.copytree(place.source.parent, tmp_path / "copy", symlinks=True)
    copy.source, copy.given = place.source, place.given
    copy.work, copy.cache = tmp_path / "copy" / "work" / "hq" / "lib", tmp_path / "copy" / "cache"
    held = tmp_path / "held"
    os.rename(place.source, held)
    shutil.copytree(held, place.source, symlinks=True)
    try:
        copy.build()
        before = copy.build()
        CHANGES[change](copy.source)
        after = copy.build()
        assert after.changed
        assert after.record.manifest != before.record.manifest
    finally:
        shutil.rmtree(place.source)
        os.rename(held, place.source)


def test_other_options_excludes_and_given_bytes_are_noticed(place: Place) -> None:
    place.build()
    assert place.build(options={"x": 1}).changed
    assert place.build(exclude=()).changed
    place.given = b"other"
    assert place.build().changed


def test_what_is_young_is_looked_at_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.build()
    assert place.reads(place.build)


def test_a_walk_sees_what_a_look_sees(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (
        "a/x",
        "a/inner/y",
        "a/inner/z/last",
        "a-b",
        "a.d/c",
        "a\x01",
        "\x01",
        "b/skipped.tmp",
        "c/d/e/f/g",
        "z",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "empty").mkdir()
    (source / "link").symlink_to("a")
    trees = [
        SourceTree(source, b"data", Excludes(("*.tmp", "/c/d/e")), contents_only=True),
        SourceTree(source, b"", Excludes(()), contents_only=False),
        SourceTree(source / "link", b"data", Excludes(()), contents_only=False),
        SourceTree.of_file(source / "z", b"data/z"),
    ]
    for tree in trees:
        list(tree.items())
        assert tree.looked is None
        list(tree.items(look=True))
        assert tree.looked == tree.look()
        tree.close()
    assert len({tree.looked for tree in trees}) == len(trees)


def test_a_pack_that_is_gone_or_a_damaged_cache_is_no_reason_to_trust_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    time.sleep(YOUNG_S)
    place.build()
    place.build()
    assert not place.reads(place.build)
    for damage in (b"", b"\x94\xafted build cache\x02\xc4\x20short"):
        place.cache.write_bytes(damage)
        assert place.reads(place.build)
        assert not place.reads(place.build)
    stamp = place.build().record.revision
    (place.work / stamp / "DISTFILE.TED").unlink()
    assert place.build().changed


def test_a_source_that_cannot_be_read_is_told_as_ever(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.build()
    os.mkfifo(place.source / "pipe")
    with pytest.raises(BuildError, match="pipe"):
        place.build()
