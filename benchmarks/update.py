"""How many bytes an update is, on consecutive releases: beside what makes deltas, and what fetches what is missing.

The releases come from the Python package index (``benchmarks/wheels.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import database, trees
from benchmarks.deltas import ZSTD_9, ZSTD_19, peers, sample
from benchmarks.measure import Contender, Options, Sample, Samples, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from benchmarks.rig import need
from benchmarks.wheels import unpack
from ted.content.builder import RevisionBuilder
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps

SOURCE_TREE = (("ansible==9.5.1",), ("ansible==9.6.1",))
BINARIES = (
    ("numpy==1.26.3", "pandas==2.2.1", "cryptography==42.0.7"),
    ("numpy==1.26.4", "pandas==2.2.2", "cryptography==42.0.8"),
)
SMALL, FAST = "ted, small", "ted, fast"
_DATABASE_ROWS = 640_000
_LEFT_OUT = {("database", ZSTD_19)}


def table(options: Options) -> Report:
    need(xdelta3="xdelta3", zstd="zstd", rsync="rsync", casync="casync", zck="zchunk", zsync="zsync")
    rows: list[list[object]] = []
    for name, make in _sets(options):
        with trees.scratch("disk") as root:
            make(root)
            with peers(root) as theirs:
                taken = [each for each in theirs if (name, each.name) not in _LEFT_OUT]
                found = interleaved([*_ours(root), *taken], options.rounds)
            rows += _rows(name, found)
    return Report(
        "update", "Update bytes",
        ["what", "by", "bytes", "to the best peer's", "to zstd -9's", "s, median (worst)", "CPU s", "peak MB",
         "changed MB/s", "apply, s", "apply, peak MB"], rows,
        ["casync, zchunk, zsync and zstd -19 were run once: their bytes are the same in every round.",
         "ted: the patch file, with the manifest in it, made from and for revisions on disk; applied, and the pack "
         "compared. The peers' bytes are for one tar of each tree, which carries modes and times as ted does (the "
         "database: the file).",
         "changed MB/s: the plain bytes of the frames that the old revision has not got, by the time it takes to make "
         "the patch and to try it out.",
         "rsync: both directions and the CPU of both sides, over a pipe or from its daemon on loopback; it sends file "
         "by file and needs no base at the sender.",
         "casync, zchunk, zsync: s, CPU and peak are of making the index and what is fetched, apply is fetching it "
         "from nginx on loopback and rebuilding the tar. Bytes are requests and answers with their headers, as nginx "
         "counts them. Chunks have the sizes they come with; casync's sender has the old chunks, zchunk's receiver "
         "the old .zck; zsync -z fetches pieces of a gzip.",
         "zstd -19 is left out for the database: it took more than four minutes."],
    )  # fmt: skip


def _sets(options: Options) -> Iterator[tuple[str, Callable[[Path], None]]]:
    if options.quick:
        yield "a database of 1,000 rows", lambda root: _databases(root, 1_000)
        return
    yield "source tree", lambda root: _unpacked(root, SOURCE_TREE)
    yield "unpacked binaries", lambda root: _unpacked(root, BINARIES)
    yield "database", lambda root: _databases(root, _DATABASE_ROWS)


def _databases(root: Path, rows: int) -> None:
    for side in ("old", "new"):
        (root / side).mkdir()
    database.make(root / "old" / "app.db", root / "new" / "app.db", rows)
    for side in ("old", "new"):
        (root / f"{side}.tar").symlink_to(root / side / "app.db")


def _unpacked(root: Path, releases: tuple[tuple[str, ...], ...]) -> None:
    for side, wanted in zip(("old", "new"), releases, strict=True):
        for requirement in wanted:
            unpack(requirement, root / side / requirement.partition("=")[0])
        run_command(["tar", "--sort=name", "-C", str(root / side), "-cf", str(root / f"{side}.tar"), "."])


def _ours(root: Path) -> list[Contender]:
    revisions = root / "var" / "hq" / "bench"
    for side in ("old", "new"):
        _build(revisions, root / side)
    return [
        Contender(SMALL, lambda: _ted(revisions, small=True)), Contender(FAST, lambda: _ted(revisions, small=False)),
    ]  # fmt: skip


def _build(revisions: Path, source: Path) -> None:
    revisions.mkdir(parents=True, exist_ok=True)
    with RevisionBuilder(revisions, "hq", "bench", "file", {}, {}, cache=None) as builder:
        builder.add_tree(source, "data/0", contents_only=True, outside_links="keep")
        builder.finish()


def _ted(revisions: Path, *, small: bool) -> Sample:
    patch = revisions / "patch"
    patch.unlink(missing_ok=True)
    former, newest = (read_record(revisions / stamp)[0] for stamp in record_stamps(revisions)[-2:])

    def create() -> None:
        with Revision(revisions, former).open() as old, Revision(revisions, newest).open() as new:
            if create_patch(old, new, patch, small=small) is None:
                raise RuntimeError("no patch was worth it")

    def apply() -> None:
        with Revision(revisions, former).open() as old, Revision(revisions, newest).open() as new:
            check = _Check(new.own_pack.path)
            apply_patch(patch, old, check)
            check.end()

    with Revision(revisions, newest).open() as new:
        changed_bytes = sum(location.plain_bytes for location in new.own_pack.index.values())
    return sample(run_function(create), patch.stat().st_size, run_function(apply), changed_bytes)


class _Check:
    """Takes the pack that a patch gives, and compares it with the one that was built."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._at = 0

    def write(self, data: bytes, /) -> None:
        if self.read(self._at, len(data)) != data:
            raise RuntimeError("the patch gave another pack")
        self._at += len(data)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, offset)

    def end(self) -> None:
        if os.fstat(self._file.fileno()).st_size != self._at:
            raise RuntimeError("the patch gave less than the pack")
        self._file.close()


def _rows(what: str, found: Samples) -> list[list[object]]:
    best = min(found.median(by, "bytes") for by in found if by not in (SMALL, FAST))
    return [
        [what, by, f"{found.median(by, 'bytes'):,.0f}", f"{found.median(by, 'bytes') / best:.2f}",
         f"{found.ratio(by, ZSTD_9, 'bytes'):.2f}", spread(found.median(by, "wall_s"), found.worst(by, "wall_s")),
         f"{found.median(by, 'cpu_s'):.2f}", mb(found.worst(by, "peak_bytes")),
         f"{found.median(by, 'changed') / 1e6 / found.median(by, 'wall_s'):.1f}" if found.median(by, "changed") else "",
         f"{found.median(by, 'apply_s'):.2f}" if found.median(by, "apply_s") else "",
         mb(found.worst(by, "apply_peak")) if found.worst(by, "apply_peak") else ""]
        for by in found
    ]  # fmt: skip
