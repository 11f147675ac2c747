"""How fast a revision is on the target, with the transaction on: beside tar."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import Contender, Options, Sample, Samples, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from ted.install.extract import extract

TAR, ZSTD = "tar -x", "tar --zstd -x"


def table(options: Options) -> Report:
    files, large = (2_000, 32 << 20) if options.quick else (20_000, 1 << 30)
    rows: list[list[object]] = []
    for where in ("memory", "disk"):
        for name, make in (
            (f"{files:,} files", lambda source: trees.small_files(source, files)),
            (f"one file of {large >> 20} MiB", lambda source: trees.large_file(source / "large", large)),
        ):
            with trees.scratch("memory") if where == "memory" else trees.new_disk() as root:
                (root / "source").mkdir()
                make(root / "source")
                rows += _rows(f"{name}, {where}", interleaved(_contenders(root, where), options.rounds))
    return Report(
        "extract", "Extracting", ["what", "by", "s, median (worst)", "CPU s", "peak MB", "tar -x to it"], rows,
        ["ted: from the received pack (zstd level 3) to the target, which is not there before: every byte checked by "
         "digest, journalled, made durable, with what an undo needs; by a process that has started.",
         "*again*: `extract --force` of what is there: every byte is compared, nothing written.",
         "tar unpacks an archive from the page cache; on disk it is followed by `sync -f`, since ted's result is "
         "durable too, and both on a file system of its own, since ext4 makes files very slowly where many were "
         "removed in the last minutes. Each result is compared with the source."],
    )  # fmt: skip


def _contenders(root: Path, where: str) -> list[Contender]:
    source, target = root / "source", root / "target"
    trees.build(root, source)
    for archive in (["-cf", str(root / "all.tar")], ["--zstd", "-cf", str(root / "all.tar.zst")]):
        run_command(["tar", *archive, "-C", str(source), "."])
    sync = f" && sync -f {target}" if where == "disk" else ""

    take_away = trees.drop if where == "memory" else trees.put_aside

    def fresh() -> None:
        for left in (target, root / "var" / ".ted"):
            take_away(left)

    def checked(sample: Sample) -> Sample:
        trees.same(source, target)
        return sample

    def ted(*, force: bool = False) -> Sample:
        if not force:
            fresh()
        host = trees.host(root)
        return checked(run_function(lambda: extract(host, trees.DISTRIBUTOR, trees.NAME, force=force)))

    def tar(words: str) -> Sample:
        fresh()
        os.mkdir(target)
        return checked(run_command(f"tar {words} -C {target}{sync}"))

    def again() -> Sample:
        ted()
        return ted(force=True)

    return [
        Contender("ted", ted), Contender("ted, again", again),
        Contender(TAR, lambda: tar(f"-xf {root}/all.tar")),
        Contender(ZSTD, lambda: tar(f"--zstd -xf {root}/all.tar.zst")),
    ]  # fmt: skip


def _rows(what: str, found: Samples) -> list[list[object]]:
    return [
        [what, by, spread(found.median(by, "wall_s"), found.worst(by, "wall_s")), f"{found.median(by, 'cpu_s'):.2f}",
         mb(found.worst(by, "peak_bytes")), f"{found.ratio(TAR, by, 'wall_s'):.2f}"]
        for by in found
    ]  # fmt: skip
