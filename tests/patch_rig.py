"""What the tests of patches share: building two revisions, and applying a patch as a receiver does."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ted.content.blocks import PACK_NAME, BlockList, PartialPack
from ted.content.builder import RevisionBuilder
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.patch.kept import RebuiltPack
from ted.content.patch.packages import CODECS
from ted.content.record import RevisionRecord
from ted.content.revision import Revision


def build(directory: Path, source: Path) -> RevisionRecord:
    """Build a revision of what lies in ``source``."""
    with RevisionBuilder(directory, "hq", "app", "file", {}, {}, allow_empty=True) as builder:
        builder.add_tree(source, "data/0", contents_only=True, outside_links="keep")
        return builder.finish(force=True).record


def rebuild(directory: Path, patch: Path, old: RevisionRecord, new: RevisionRecord, into: Path) -> PartialPack:
    """Apply a patch as a receiver does."""
    ref = new.packs[0]
    blocks = BlockList.of_pack(directory / new.revision / PACK_NAME, ref.block_bytes).digests
    pack = PartialPack.prepare(into, ref, blocks)
    with Revision(directory, old).open() as before:
        apply_patch(patch, before, RebuiltPack(pack))
    pack.flush()
    return pack


def assert_rebuilt(
    directory: Path, old: RevisionRecord, new: RevisionRecord, *, small: bool | None, opening: str = "fast"
) -> int | None:
    """Make a patch and apply it: the very pack must come of it. Return the patch's bytes, ``None`` if none was kept."""
    patch = directory / "patch"
    patch.unlink(missing_ok=True)
    with Revision(directory, old).open() as before, Revision(directory, new).open() as after:
        size = create_patch(before, after, patch, small=small, codecs=CODECS[opening])
    assert (size is None) is not patch.exists()
    if size is None:
        return None
    with tempfile.TemporaryDirectory() as into:
        pack = rebuild(directory, patch, old, new, Path(into) / "pack")
        assert pack.complete()
        assert pack.path.read_bytes() == (directory / new.revision / PACK_NAME).read_bytes()
        pack.close()
    return size
