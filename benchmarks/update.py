"""How many bytes an update is: beside zstd --patch-from, xdelta3 and rsync, on consecutive releases.

The releases come from the Python package index, once, into ``~/.cache/ted/benchmarks``.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import database, trees
from benchmarks.measure import Contender, Options, Sample, Samples, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from benchmarks.rig import need
from ted.content.builder import RevisionBuilder
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps

CACHE = Path.home() / ".cache" / "ted" / "benchmarks"
SOURCE_TREE = (("ansible==9.5.1",), ("ansible==9.6.1",))
BINARIES = (
    ("numpy==1.26.3", "pandas==2.2.1", "cryptography==42.0.7"),
    ("numpy==1.26.4", "pandas==2.2.2", "cryptography==42.0.8"),
)
SMALL, FAST = "ted, small", "ted, fast"
ZSTD_19, ZSTD_9, XDELTA, RSYNC = "zstd -19 --patch-from", "zstd -9 --patch-from", "xdelta3 -9 -S lzma", "rsync -z zstd"
_SENT = re.compile(r"Total bytes (?:sent|received): ([\d,.]+)")
_DATABASE_ROWS = 640_000


def table(options: Options) -> Report:
    need(xdelta3="xdelta3", zstd="zstd", rsync="rsync")
    rows: list[list[object]] = []
    for name, make in _sets(options):
        with trees.scratch("disk") as root:
            make(root)
            rows += _rows(name, interleaved(_contenders(root, name), 1 if not options.quick else options.rounds))
    return Report(
        "update", "Update bytes",
        ["what", "by", "bytes", "to the best peer's", "to zstd -9's", "s, median (worst)", "CPU s", "peak MB",
         "changed MB/s", "apply, s", "apply, peak MB"], rows,
        ["Bytes are the same in every round, so one round is taken; times are of that round.",
         "ted: the patch file, with the manifest in it, made from and for revisions on disk; applied, and the pack "
         "compared. The peers' bytes are for one tar of each tree, which carries modes and times as ted does (the "
         "database: the file).",
         "changed MB/s: the plain bytes of the frames that the old revision has not got, by the time it takes to make "
         "the patch and to try it out.",
         "rsync: both directions, over a pipe; it sends file by file and needs no base at the sender.",
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
            _unpack(_wheel(requirement), root / side / requirement.partition("=")[0])
        run_command(["tar", "--sort=name", "-C", str(root / side), "-cf", str(root / f"{side}.tar"), "."])


def _unpack(wheel: Path, place: Path) -> None:
    """Unpack a wheel with the times in it: they are part of what an update carries, for every contender."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
        for item in archive.infolist():
            at_s = datetime(*item.date_time, tzinfo=UTC).timestamp()
            os.utime(place / item.filename, (at_s, at_s))


def _wheel(requirement: str) -> Path:
    """Return the wheel of a release, downloaded once."""
    place = CACHE / requirement.replace("==", "-")
    if not list(place.glob("*.whl")):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--python-version", "3.11", "--dest", str(place), requirement], check=True,
        )  # fmt: skip
    return next(place.glob("*.whl"))


def _contenders(root: Path, name: str) -> list[Contender]:
    old, new, out = root / "old.tar", root / "new.tar", root / "out"
    revisions = root / "var" / "hq" / "bench"
    for side in ("old", "new"):
        _build(revisions, root / side)

    def peer(words: list[str], undo: list[str]) -> Callable[[], Sample]:
        def run() -> Sample:
            out.unlink(missing_ok=True)
            made, size = run_command(words), out.stat().st_size
            back = run_command(undo)
            if _digest(root / "back") != _digest(new):
                raise RuntimeError(f"{words[0]} gave something else")
            return _sample(made, size, back)

        return run

    def zstd(level: int) -> Callable[[], Sample]:
        common = ["zstd", "-q", "-f", "--long=31", f"--patch-from={old}"]
        return peer([*common, f"-{level}", str(new), "-o", str(out)], [*common, "-d", str(out), "-o", f"{root}/back"])

    xdelta = peer(
        ["xdelta3", "-e", "-9", "-S", "lzma", "-B", str(1 << 30), "-f", "-s", str(old), str(new), str(out)],
        ["xdelta3", "-d", "-B", str(1 << 30), "-f", "-s", str(old), str(out), f"{root}/back"],
    )

    def rsync() -> Sample:
        run_command(["rm", "-rf", str(root / "copy")])
        run_command(["cp", "-a", str(root / "old"), str(root / "copy")])
        words = ["rsync", "-a", "-z", "--zc=zstd", "--no-whole-file", "--delete", "--stats",
                 f"{root}/new/", f"localhost:{root}/copy/", "-e", f"{sys.executable} {__file__}"]  # fmt: skip
        said = root / "said"
        made = run_command(" ".join(f"'{word}'" for word in words) + f" > '{said}'")
        run_command(["diff", "-r", "--no-dereference", str(root / "new"), str(root / "copy")])
        size = sum(int(re.sub(r"\D", "", found)) for found in _SENT.findall(said.read_text()))
        return _sample(made, size, None)

    contenders = [
        Contender(SMALL, lambda: _ted(revisions, small=True)), Contender(FAST, lambda: _ted(revisions, small=False)),
        Contender(ZSTD_9, zstd(9)), Contender(XDELTA, xdelta), Contender(RSYNC, rsync),
    ]  # fmt: skip
    return contenders if name == "database" else [*contenders, Contender(ZSTD_19, zstd(19), rounds=1)]


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
    return _sample(run_function(create), patch.stat().st_size, run_function(apply), changed_bytes)


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


def _sample(made: Sample, size: int, back: Sample | None, changed_bytes: int = 0) -> Sample:
    more = {
        "bytes": size, "changed": changed_bytes,
        "apply_s": back.wall_s if back else 0, "apply_peak": back.peak_bytes if back else 0,
    }  # fmt: skip
    return Sample(made.wall_s, made.cpu_s, made.peak_bytes, more)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(what: str, found: Samples) -> list[list[object]]:
    best = min(found.median(by, "bytes") for by in (ZSTD_19, XDELTA) if by in found)
    return [
        [what, by, f"{found.median(by, 'bytes'):,.0f}", f"{found.median(by, 'bytes') / best:.2f}",
         f"{found.ratio(by, ZSTD_9, 'bytes'):.2f}", spread(found.median(by, "wall_s"), found.worst(by, "wall_s")),
         f"{found.median(by, 'cpu_s'):.2f}", mb(found.worst(by, "peak_bytes")),
         f"{found.median(by, 'changed') / 1e6 / found.median(by, 'wall_s'):.1f}" if found.median(by, "changed") else "",
         f"{found.median(by, 'apply_s'):.2f}" if found.median(by, "apply_s") else "",
         mb(found.worst(by, "apply_peak")) if found.worst(by, "apply_peak") else ""]
        for by in found
    ]  # fmt: skip


if __name__ == "__main__":  # rsync's remote shell: the words after the host name, on this machine
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execvp(sys.argv[2], sys.argv[2:])
