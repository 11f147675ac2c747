"""The mirror that fetching types share, with a source in memory that can cut, lie and change."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ted.errors import BuildError, EmptySourceError, RefusedError, TransferError
from ted_plugins.sources.mirror import Download, Limits, Mirror, Refreshed, Remote
from ted_plugins.sources.rate import Rate, parse_size

NS = 10**9
LOG = logging.getLogger("test")


@dataclass
class Shelf:
    """A source in memory: files as ``(content, second, version)``."""

    files: dict[str, tuple[bytes, int, str | None]]
    settled: bool = True
    sizes: bool = True
    digests: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Path: after how many bytes each try ends."""
    name: str = "shelf"
    asked: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    connections: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def listing(self) -> Iterator[Remote]:
        for path, (data, second, _) in self.files.items():
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}" if self.digests else None
            size = len(data) if self.sizes else None
            yield Remote(path, size, second * NS, None, digest, settled=self.settled, handle=path)

    @contextmanager
    def connect(self) -> Iterator[Callable[[Remote, Download], None]]:
        with self._lock:
            self.connections += 1
        yield self._fetch

    def _fetch(self, remote: Remote, download: Download) -> None:
        data, second, version = self.files[remote.handle]
        with self._lock:
            self.asked.append(remote.path)
        if download.known is not None and download.known.validator == version:
            download.unchanged()
            return
        partial = download.partial
        offset = partial.size_bytes if partial is not None and partial.validator == version else 0
        download.begin(offset_bytes=offset, validator=version, size_bytes=len(data), mtime_ns=second * NS)
        with self._lock:
            self.offsets.append(offset)
            cuts = self.cuts.get(remote.path, [])
            end = cuts.pop(0) if cuts else len(data) + 1
        for at in range(offset, min(end, len(data)), 65536):
            download.write(data[at : min(at + 65536, end)])
        if end <= len(data):
            raise TransferError("cut")


def mirror_of(tmp_path: Path, shelf: Shelf, **more: object) -> Mirror:
    return Mirror(tmp_path / "m", shelf, LOG, wait=lambda _: None, **more)  # type: ignore[arg-type]


def tree(mirror: Mirror) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(mirror.files)): (path.read_bytes(), path.stat().st_mtime_ns // NS)
        for path in sorted(mirror.files.rglob("*")) if path.is_file()
    }  # fmt: skip


def shelf_tree(shelf: Shelf) -> dict[str, tuple[bytes, int]]:
    return {path: (data, second) for path, (data, second, _) in sorted(shelf.files.items())}


BIG = os.urandom(3 << 20)


def test_an_unchanged_source_costs_its_listing_and_no_connection(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1"), "d/b": (b"B", 6, "1"), "d/e/c": (b"", 7, "1")})
    mirror = mirror_of(tmp_path, shelf)
    assert mirror.refresh() == Refreshed(3, 0, 0, 2)
    assert tree(mirror) == shelf_tree(shelf)
    shelf.connections = 0
    assert mirror.refresh() == Refreshed(0, 3, 0, 0)
    assert shelf.connections == 0


def test_only_what_changed_is_fetched_and_what_vanished_goes_with_its_empty_directories(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1"), "d/e/b": (b"B", 6, "1"), "f/c": (b"C", 6, "1")})
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    shelf.asked.clear()
    shelf.files["a"] = (b"AA", 9, "2")
    shelf.files["g"] = (b"G", 9, "1")
    del shelf.files["d/e/b"]
    assert mirror.refresh() == Refreshed(2, 1, 1, 3)
    assert sorted(shelf.asked) == ["a", "g"]
    assert tree(mirror) == shelf_tree(shelf)
    assert not (mirror.files / "d").exists()


def test_a_listing_that_could_hide_a_change_is_not_believed_but_asked(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1")}, settled=False)
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    shelf.files["a"] = (b"B", 5, "2")
    assert mirror.refresh() == Refreshed(1, 0, 0, 1)
    shelf.settled = True
    assert mirror.refresh() == Refreshed(0, 1, 0, 0)
    assert shelf.asked == ["a"] * 3
    mirror.refresh()
    assert shelf.asked == ["a"] * 3


def test_a_file_becomes_a_directory_and_back(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1"), "z": (b"Z", 5, "1")})
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    shelf.files = {"a/b/c": (b"C", 5, "1"), "z": (b"Z", 5, "1")}
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)
    shelf.files = {"a": (b"A", 5, "1"), "z": (b"Z", 5, "1")}
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)
    assert mirror.refresh() == Refreshed(0, 2, 0, 0)


def test_the_same_source_gives_the_same_tree_whatever_was_there_before(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1"), "d/old": (b"B", 99, "1"), "d/new": (b"B", 6, "1")})
    first = Mirror(tmp_path / "one", shelf, LOG)
    first.refresh()
    del shelf.files["d/old"]
    first.refresh()
    os.umask(mask := os.umask(0o077))
    try:
        second = Mirror(tmp_path / "two", shelf, LOG)
        second.refresh()
    finally:
        os.umask(mask)
    command = ["rsync", "-nca", "--delete", "-i", f"{first.files}/", f"{second.files}/"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
    assert (second.files / "d").stat().st_mtime == 6


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//b", "./a", "", "a\0b", "x" * 300, "a/" * 200 + "b"])
def test_hostile_names_end_the_build_and_leave_nothing_outside(tmp_path: Path, path: str) -> None:
    mirror = mirror_of(tmp_path, Shelf({"ok": (b"A", 5, "1"), path: (b"B", 5, "1")}))
    with pytest.raises(BuildError, match="a name that cannot be taken"):
        mirror.refresh()
    assert {each.name for each in tmp_path.iterdir()} == {"m"}


def test_a_name_that_is_a_file_and_a_directory_at_once_is_refused(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1"), "a!": (b"", 5, "1"), "a/b": (b"B", 5, "1")})
    with pytest.raises(BuildError, match="'a' as a file and as a directory"):
        mirror_of(tmp_path, shelf).refresh()


def test_an_empty_source_is_an_error_and_what_was_there_stays(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1")})
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    before = tree(mirror)
    shelf.files = {}
    with pytest.raises(EmptySourceError):
        mirror.refresh()
    assert tree(mirror) == before
    assert mirror_of(tmp_path, shelf, allow_empty=True).refresh() == Refreshed(0, 0, 1, 0)
    assert tree(mirror) == {}


def test_a_cut_download_goes_on_and_its_bytes_come_once(tmp_path: Path) -> None:
    shelf = Shelf({"big": (BIG, 5, "1")}, cuts={"big": [1 << 20, 2 << 20]})
    mirror = mirror_of(tmp_path, shelf)
    assert mirror.refresh() == Refreshed(1, 0, 0, len(BIG))
    assert shelf.offsets == [0, 1 << 20, 2 << 20]
    assert tree(mirror) == shelf_tree(shelf)


def test_a_later_build_goes_on_where_the_last_one_gave_up(tmp_path: Path) -> None:
    shelf = Shelf({"big": (BIG, 5, "1"), "small": (b"S", 5, "1")}, cuts={"big": [1 << 20]})
    with pytest.raises(TransferError, match="cut"):
        mirror_of(tmp_path, shelf, retries=0).refresh()
    mirror = mirror_of(tmp_path, shelf, retries=0)
    assert mirror.refresh().bytes <= len(BIG) - (1 << 20) + 1
    assert tree(mirror) == shelf_tree(shelf)


def test_two_versions_are_never_joined(tmp_path: Path) -> None:
    shelf = Shelf({"big": (BIG, 5, "1")}, cuts={"big": [1 << 20]})
    with pytest.raises(TransferError):
        mirror_of(tmp_path, shelf, retries=0).refresh()
    shelf.files["big"] = (BIG[::-1], 6, "2")
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)


@pytest.mark.parametrize("size_bytes", [1000, 3 << 20])
def test_what_was_cut_may_come_back_small_or_without_a_version(tmp_path: Path, size_bytes: int) -> None:
    shelf = Shelf({"big": (BIG, 5, "1")}, cuts={"big": [1 << 20]})
    with pytest.raises(TransferError):
        mirror_of(tmp_path, shelf, retries=0).refresh()
    shelf.files["big"] = (BIG[::-1][:size_bytes], 6, "2" if size_bytes == 1000 else None)
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)
    assert not list(tmp_path.glob("m/parts/*"))


def test_a_part_of_before_a_power_cut_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf({"big": (BIG, 5, "1")}, cuts={"big": [1 << 20]})
    with pytest.raises(TransferError):
        mirror_of(tmp_path, shelf, retries=0).refresh()
    (part,) = (path for path in (tmp_path / "m/parts").iterdir() if not path.suffix)
    part.write_bytes(bytes(part.stat().st_size))
    monkeypatch.setattr("ted_plugins.sources.download.boot", lambda: "another")
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)


def test_a_file_damaged_by_a_power_cut_is_fetched_again_and_a_whole_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf({"a": (b"A" * 100, 5, "1"), "b": (b"B" * 100, 5, "1")})
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    damaged = mirror.files / "a"
    damaged.write_bytes(bytes(100))
    os.utime(damaged, ns=(5 * NS, 5 * NS))
    shelf.asked.clear()
    monkeypatch.setattr("ted_plugins.sources.index.boot", lambda: "another")
    mirror.refresh()
    assert shelf.asked == ["a"]
    assert tree(mirror) == shelf_tree(shelf)


def test_a_promised_digest_is_verified_and_a_listing_with_it_needs_no_request(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A", 5, "1")}, digests=True)
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    mirror.refresh()
    assert shelf.asked == ["a"]
    promised = Remote("a", None, None, None, f"sha256:{'0' * 64}", handle="a")
    shelf.listing = lambda: iter([promised])  # type: ignore[method-assign]
    with pytest.raises(BuildError, match="was promised"):
        mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)


def test_what_comes_is_bounded(tmp_path: Path) -> None:
    shelf = Shelf({"a": (b"A" * 1000, 5, "1"), "b": (b"B" * 1000, 5, "1")})
    for sizes in (True, False):
        shelf.sizes = sizes
        with pytest.raises(BuildError, match="more than 1500 bytes"):
            Mirror(tmp_path / f"m{sizes}", shelf, LOG, limits=Limits(total_bytes=1500)).refresh()
    with pytest.raises(BuildError, match="more than 1 files"):
        mirror_of(tmp_path, shelf, limits=Limits(files=1)).refresh()


def test_an_endless_file_ends_at_its_size(tmp_path: Path) -> None:
    class Endless(Shelf):
        def _fetch(self, _remote: Remote, download: Download) -> None:
            download.begin(size_bytes=10)
            while True:
                download.write(b"x" * 7)

    mirror = mirror_of(tmp_path, Endless({"a": (b"A", 5, "1")}), retries=1)
    with pytest.raises(TransferError, match="more comes than its 10 bytes"):
        mirror.refresh()
    assert tree(mirror) == {}


def test_a_refusal_is_not_asked_for_again(tmp_path: Path) -> None:
    class Refusing(Shelf):
        def _fetch(self, remote: Remote, _download: Download) -> None:
            self.asked.append(remote.path)
            raise RefusedError("403")

    shelf = Refusing({"a": (b"A", 5, "1")})
    with pytest.raises(RefusedError):
        mirror_of(tmp_path, shelf).refresh()
    assert shelf.asked == ["a"]


def test_what_was_fetched_before_an_error_is_not_fetched_again(tmp_path: Path) -> None:
    shelf = Shelf({f"f{n:03}": (b"%d" % n, 5, "1") for n in range(300)} | {"z": (b"Z", 5, "1")}, cuts={"z": [0]})
    with pytest.raises(TransferError):
        mirror_of(tmp_path, shelf, retries=0, parallel=1).refresh()
    shelf.asked.clear()
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    assert shelf.asked == ["z"]
    assert tree(mirror) == shelf_tree(shelf)


def test_progress_and_rate(tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    shelf = Shelf({"big": (BIG, 5, "1")})
    rate = Rate(1 << 20, clock=lambda: now[0], wait=wait)
    mirror_of(tmp_path, shelf, rate=rate, progress=lambda *each: told.append(each)).refresh()
    assert told[-1] == (len(BIG), len(BIG), "shelf")
    assert now[0] == pytest.approx(3 - 0.25, abs=0.01)


def test_the_rate_is_one_for_all_threads() -> None:
    now = [0.0]
    lock = threading.Lock()

    def wait(seconds: float) -> None:
        with lock:
            now[0] = max(now[0], seconds)

    rate = Rate(1000, clock=lambda: 0.0, wait=wait)
    threads = [threading.Thread(target=lambda: [rate.take(100) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert now[0] == pytest.approx(4 - 0.25)


def test_sizes_are_written_as_everywhere_in_ted() -> None:
    texts = [7, "7", "2MB", "256KiB", "1.5 GiB", "10kB/s"]
    assert [parse_size(text) for text in texts] == [7, 7, 2_000_000, 262_144, 3 << 29, 10_000]
    for bad in (0, -1, True, None, "2Mb", "x", "1e9", [1]):
        with pytest.raises(ValueError, match="no size"):
            parse_size(bad)


def test_a_kill_anywhere_is_answered_by_the_next_refresh(tmp_path: Path) -> None:
    files = {f"d{n % 7}/f{n}": (b"%d" % n * 100, n, "1") for n in range(200)} | {"big": (BIG, 9, "1")}
    shelf = Shelf(files)
    for round_ in range(12):
        child = os.fork()
        if child == 0:
            pieces = itertools.count()

            def die(*_: object, last: int = round_ * 20, pieces: Iterator[int] = pieces) -> None:
                if next(pieces) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                mirror_of(tmp_path, shelf, progress=die).refresh()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        shelf.files = dict(files) | {"d0/f0": (b"new %d" % round_, 500 + round_, str(round_))}
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)
    assert not (tmp_path / "m/parts").exists()


def test_a_file_without_a_row_does_not_outlive_its_source(tmp_path: Path) -> None:
    shelf = Shelf({f"d/{n}": (b"%d" % n, n, "1") for n in range(3)} | {"gone/file": (b"secret", 9, "1")})
    mirror = mirror_of(tmp_path, shelf)
    mirror.refresh()
    # as a kill between a file's name and its row leaves it, and a damaged index
    (tmp_path / "m/index.db").write_bytes(b"no index")
    (mirror.files / "empty").mkdir()
    del shelf.files["gone/file"]
    mirror.refresh()
    assert tree(mirror) == shelf_tree(shelf)
    assert [path.name for path in mirror.files.iterdir()] == ["d"]


def test_memory_is_flat_in_the_number_of_files(tmp_path: Path) -> None:
    script = """
import logging, sys
from contextlib import contextmanager
from pathlib import Path
from ted_plugins.sources.mirror import Mirror, Remote

class Many:
    name = "many"
    def __init__(self, count): self.count = count
    def listing(self):
        for n in range(self.count):
            yield Remote(f"{'d' * 60}{n % 100}/{'f' * 60}{n}", 1, 5, settled=True)
    @contextmanager
    def connect(self):
        yield self.fetch
    def fetch(self, remote, download):
        download.begin(); download.write(b"x")

def peak(count):
    Mirror(Path(sys.argv[1]) / str(count), Many(count), logging.getLogger()).refresh()
    # of this process alone: getrusage would also know its parent's
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

print(-peak(500) + peak(6000))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    more_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert more_kib < 8 * 1024
