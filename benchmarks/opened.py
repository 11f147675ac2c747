"""What an update of packages costs when patches open them: consecutive versions of wheels, sources and Debian packages.

They are fetched by ``pip download`` and ``apt-get download``, once, into ``~/.cache/ted/benchmarks``. Of a Debian
package the two newest versions that apt offers are taken (stable and its security updates).
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cmp_to_key
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import Options, Sample, run_command, run_function
from benchmarks.report import Report, mb
from benchmarks.update import _Check
from benchmarks.wheels import CACHE
from ted.content.builder import RevisionBuilder
from ted.content.opening.codecs import Inflated, Read
from ted.content.opening.containers import Packed, container, following
from ted.content.opening.proof import Prover
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.patch.packages import CODECS
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps

WHEELS = (
    ("requests", "2.32.2", "2.32.3"), ("jinja2", "3.1.3", "3.1.4"), ("urllib3", "2.2.1", "2.2.2"),
    ("werkzeug", "3.0.2", "3.0.3"), ("orjson", "3.10.4", "3.10.5"), ("setuptools", "70.0.0", "70.1.0"),
    ("pip", "24.0", "24.1"), ("pydantic-core", "2.18.3", "2.18.4"), ("cryptography", "42.0.7", "42.0.8"),
)  # fmt: skip
SOURCES = (("idna", "3.6", "3.7"), ("flask", "3.0.2", "3.0.3"))
DEBS = ("bind9-host", "bind9-dnsutils", "openssh-sftp-server", "nginx-common", "libexpat1", "curl", "libcurl4",
        "libpython3.11-minimal", "openssl")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two consecutive versions of a package, on disk."""

    name: str
    old: Path
    new: Path

    @property
    def kind(self) -> str:
        """What its name ends with."""
        return "tar.gz" if self.new.name.endswith(".tar.gz") else self.new.suffix[1:]


@dataclass
class Streams:
    """The compressed streams of a package: how many there are, and how many were made again to the last byte."""

    count: int = 0
    exact: int = 0
    bytes: int = 0
    exact_bytes: int = 0


def table(options: Options) -> Report:
    rows: list[list[object]] = []
    shares: list[float] = []
    deltas: list[float] = []
    for pair in _pairs(options):
        print(f"  {pair.old.name} -> {pair.new.name}", file=sys.stderr, flush=True)
        row, share, delta = _row(pair)
        print(f"    {' | '.join(map(str, row))}", file=sys.stderr, flush=True)
        rows.append(row)
        shares.append(share)
        deltas.append(delta)
    return Report(
        "opened", "Packages opened",
        ["package", "kind", "streams", "exact", "of their bytes", "package, bytes", "sent, closed", "sent, opened",
         "opened to closed", "to the plain delta", "build, CPU s", "receive, CPU s", "receive, peak MB"], rows,
        [f"{len(rows)} pairs. Opened to closed: median {statistics.median(shares):.3f}; to the plain delta: median "
         f"{statistics.median(deltas):.2f}.",
         "Exact: streams of the new package that a recipe makes again to the last byte, by number and by compressed "
         "bytes. The deb packages are built with `open_packages: all`, the others with `fast`.",
         "Sent, closed: the patch with `open_packages: none`, or the pack where no patch is worth it. Sent, opened: "
         "the same with packages opened. The pack that came of it was compared, byte for byte.",
         "The plain delta: zstd -19 --patch-from between tars of what the two packages hold, which nobody could turn "
         "into the package again.",
         "CPU: making the patch (with trying it out), and applying it, each in a process of its own."],
    )  # fmt: skip


def _pairs(options: Options) -> Iterator[Pair]:
    if options.quick:
        yield _wheel(*WHEELS[0])
        return
    for wheel in WHEELS:
        yield _wheel(*wheel)
    for name, old, new in SOURCES:
        yield Pair(name, *(_from_index(name, version, "*.tar.gz") for version in (old, new)))
    for name in DEBS:
        yield _deb(name)


def _wheel(name: str, old: str, new: str) -> Pair:
    return Pair(name, *(_from_index(name, version, "*.whl") for version in (old, new)))


def _deb(name: str) -> Pair:
    return Pair(name, *(_from_apt(name, version) for version in _two_versions(name)))


def _from_index(name: str, version: str, pattern: str) -> Path:
    place = CACHE / f"{name}-{version}"
    if not list(place.glob(pattern)):
        which = "--only-binary" if pattern.endswith("whl") else "--no-binary"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", which, ":all:", "--dest", str(place),
             f"{name}=={version}"], check=True,
        )  # fmt: skip
    return next(place.glob(pattern))


def _two_versions(name: str) -> list[str]:
    said = subprocess.run(["apt-cache", "madison", name], check=True, capture_output=True, text=True).stdout
    found = {line.split("|")[1].strip() for line in said.splitlines() if "Packages" in line}

    def compare(one: str, other: str) -> int:
        done = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False)
        return -1 if done.returncode == 0 else 1

    versions = sorted(found, key=cmp_to_key(compare))[-2:]
    if len(versions) < 2:
        raise RuntimeError(f"apt offers one version of {name} only; `apt-get update` may help")
    return versions


def _from_apt(name: str, version: str) -> Path:
    place = CACHE / re.sub(r"[^\w.+~-]", "_", f"deb-{name}-{version}")
    if not list(place.glob("*.deb")):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", f"{name}={version}"], cwd=place, check=True, capture_output=True)
    return next(place.glob("*.deb"))


def _row(pair: Pair) -> tuple[list[object], float, float]:
    found = _streams(pair.new)
    opening = "all" if pair.kind == "deb" else "fast"
    with trees.scratch("disk") as root:
        for side in (pair.old, pair.new):
            _build(root / "var", side)
        pack_bytes = read_record(root / "var" / record_stamps(root / "var")[-1])[0].packs[0].bytes
        closed, _, _ = _sent(root / "var", "none", pack_bytes)
        opened, made, applied = _sent(root / "var", opening, pack_bytes)
        plain = _plain_delta(pair, root)
    row = [
        f"{pair.name} {_version(pair.old)} -> {_version(pair.new)}", pair.kind, found.count,
        f"{found.exact / found.count:.1%}", f"{found.exact_bytes / found.bytes:.1%}", f"{pair.new.stat().st_size:,}",
        f"{closed:,}", f"{opened:,}", f"{opened / closed:.3f}", f"{opened / plain:.2f}", f"{made.cpu_s:.1f}",
        f"{applied.cpu_s:.2f}" if applied else "", mb(applied.peak_bytes) if applied else "",
    ]  # fmt: skip
    return list(row), opened / closed, opened / plain


def _version(path: Path) -> str:
    found = re.search(r"[-_](?:\d+%3a)?(\d[^-_]*(?:-[^_]*)?)[-_]", path.name.replace(".tar.gz", "-"))
    return found[1].split("-cp")[0].split("-py")[0] if found else ""


def _streams(path: Path) -> Streams:
    """Try every stream of a package, whether or not an update changes it."""
    data, found, prover = path.read_bytes(), Streams(), Prover()
    read = _reader(data)
    laid_out = container(read, len(data))
    waiting = deque(packed for part in laid_out.parts for packed in part.packed) if laid_out is not None else deque()
    while waiting:
        each: Packed = waiting.popleft()
        stream = Inflated(each.codec, read, each.start)
        plain = b"".join(stream)
        recipe = prover.recipe(each.codec, each.hint, _reader(plain), len(plain), _reader(data[each.start :]),
                               stream.raw_bytes)  # fmt: skip
        found.count += 1
        found.bytes += stream.raw_bytes
        found.exact += recipe is not None
        found.exact_bytes += stream.raw_bytes if recipe is not None else 0
        if each.length is None and (more := following(read, replace(each, length=stream.raw_bytes), len(data))):
            waiting.append(more)
    return found


def _reader(data: bytes) -> Read:
    return lambda place, count: data[place : place + count]


def _build(revisions: Path, package: Path) -> None:
    revisions.mkdir(parents=True, exist_ok=True)
    with RevisionBuilder(revisions, "hq", "bench", "file", {}, {}, cache=None) as builder:
        builder.add_tree(package, "data/0")
        builder.finish()


def _sent(revisions: Path, opening: str, pack_bytes: int) -> tuple[int, Sample, Sample | None]:
    """Return the bytes that a receiver with the old version needs, what making them cost, and using them."""
    patch = revisions / "patch"
    patch.unlink(missing_ok=True)
    former, newest = (read_record(revisions / stamp)[0] for stamp in record_stamps(revisions)[-2:])

    def create() -> None:
        with Revision(revisions, former).open() as old, Revision(revisions, newest).open() as new:
            create_patch(old, new, patch, small=None, codecs=CODECS[opening])

    def apply() -> None:
        with Revision(revisions, former).open() as old, Revision(revisions, newest).open() as new:
            check = _Check(new.own_pack.path)
            apply_patch(patch, old, check)
            check.end()

    made = run_function(create)
    if not patch.exists():
        return pack_bytes, made, None
    return patch.stat().st_size, made, run_function(apply)


def _plain_delta(pair: Pair, root: Path) -> int:
    for side, package in (("old", pair.old), ("new", pair.new)):
        _plain(package, root / f"{side}.tar", root / side)
    run_command(["zstd", "-q", "-f", "-19", "--long=31", f"--patch-from={root}/old.tar", str(root / "new.tar"),
                 "-o", str(root / "delta")])  # fmt: skip
    return (root / "delta").stat().st_size


def _plain(package: Path, tar: Path, scratch: Path) -> None:
    """Write what a package holds as one tar."""
    if package.suffix == ".deb":
        run_command(f"dpkg-deb --fsys-tarfile '{package}' > '{tar}'")
    elif package.suffix == ".gz":
        run_command(f"gzip -dc '{package}' > '{tar}'")
    else:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(scratch)
        with tarfile.open(tar, "w") as out:
            out.add(scratch, ".")
        shutil.rmtree(scratch)
