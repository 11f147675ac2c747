"""How fast a tree becomes a revision: beside tar and zstd, borg and restic, from the page cache."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import Contender, Options, Sample, Samples, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from benchmarks.rig import need
from ted import plugins
from ted.content.builder import BuildResult

CACHE_TRUSTS_AFTER_S = 2.1
TAR, BORG, RESTIC = "tar, zstd -3 -T2", "borg create, zstd 3", "restic backup"
_QUIET = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "RESTIC_PASSWORD": "x"}


def table(options: Options) -> Report:
    need(borg="borgbackup", restic="restic", zstd="zstd")
    files, large = (2_000, 32 << 20) if options.quick else (20_000, 1 << 30)
    rows: list[list[object]] = []
    for name, make in (
        (f"{files:,} files", lambda source: trees.small_files(source, files)),
        (f"one file of {large >> 20} MiB", lambda source: trees.large_file(source / "large", large)),
    ):
        with trees.scratch("memory") as root:
            (root / "source").mkdir()
            make(root / "source")
            rows += _rows(name, interleaved(_contenders(root), options.rounds))
    count = 2_000 if options.quick else 100_000
    with trees.scratch("memory") as root:
        rows += _again(root, count, options)
    return Report(
        "build", "Building", ["what", "by", "s, median (worst)", "CPU s", "peak MB", "out MB", "time to ted's"], rows,
        ["Source and result in memory; every contender reads all and compresses with zstd level 3 (restic: its own "
         "default). ted also makes manifest and block list and syncs them; by a process that has started.",
         "*nothing changed*: every name and status is looked at, nothing is read."],
    )  # fmt: skip


def _contenders(root: Path) -> list[Contender]:
    plugins.type_named("file")  # the runs are forked from a process that knows the type
    source, home = root / "source", {"HOME": str(root / "home"), **_QUIET}

    def fresh(name: str) -> Path:
        trees.drop(root / name)
        (root / name).mkdir()
        return root / name

    def ted() -> Sample:
        out = fresh("ted")
        return _with_size(run_function(lambda: trees.build(out, source)), out)

    def tar() -> Sample:
        out = fresh("tar")
        words = f"tar -c -C {shlex.quote(str(source))} . | zstd -q -3 -T2 -o {shlex.quote(str(out / 'all.tar.zst'))}"
        return _with_size(run_command(words), out)

    def borg() -> Sample:
        out = fresh("borg")
        run_command(["borg", "init", "-e", "none", str(out / "repo")], env=home)
        return _with_size(run_command(
            ["borg", "create", "--compression", "zstd,3", "--files-cache", "disabled", f"{out}/repo::x", str(source)],
            env=home,
        ), out)  # fmt: skip

    def restic() -> Sample:
        out = fresh("restic")
        run_command(["restic", "-q", "init", "-r", str(out / "repo")], env=home)
        return _with_size(run_command(
            ["restic", "-q", "backup", "-r", str(out / "repo"), "--no-cache", str(source)], env=home
        ), out)  # fmt: skip

    return [Contender("ted", ted), Contender(TAR, tar), Contender(BORG, borg), Contender(RESTIC, restic)]


def _with_size(sample: Sample, out: Path) -> Sample:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "cache")
    return Sample(sample.wall_s, sample.cpu_s, sample.peak_bytes, {"out": size})


def _rows(what: str, found: Samples) -> list[list[object]]:
    return [
        [what, by, spread(found.median(by, "wall_s"), found.worst(by, "wall_s")), f"{found.median(by, 'cpu_s'):.2f}",
         mb(found.worst(by, "peak_bytes")), mb(found.median(by, "out")),
         f"{found.ratio(by, 'ted', 'wall_s'):.2f}"]
        for by in found
    ]  # fmt: skip


def _again(root: Path, count: int, options: Options) -> list[list[object]]:
    (root / "source").mkdir()
    trees.tiny_files(root / "source", count)
    time.sleep(CACHE_TRUSTS_AFTER_S)
    first = run_function(lambda: trees.build(root, root / "source"))

    def unchanged() -> None:
        result: BuildResult = trees.build(root, root / "source")
        if result.changed:
            raise RuntimeError("something changed")

    def one_line() -> None:
        with (root / "source" / "d00001" / "f001.conf").open("ab") as file:
            file.write(b"%d\n" % os.getpid())
        if not trees.build(root, root / "source").changed:
            raise RuntimeError("nothing changed")

    found = interleaved([Contender("nothing changed", lambda: run_function(unchanged))], options.rounds)
    changed = interleaved([Contender("one line changed", lambda: run_function(one_line))], options.rounds)
    found["one line changed"] = changed["one line changed"]
    found["first"] = [first]
    return [
        [f"{count:,} small files: {by}", "ted", spread(found.median(by, "wall_s"), found.worst(by, "wall_s")),
         f"{found.median(by, 'cpu_s'):.2f}", mb(found.worst(by, "peak_bytes")), "", ""]
        for by in ("first", "nothing changed", "one line changed")
    ]  # fmt: skip
