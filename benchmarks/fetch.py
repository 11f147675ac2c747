"""How fast a server's files are here, and what it costs to find that nothing changed: beside wget -m and aria2c."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from benchmarks.fetching import anew_and_again, counted, measured, nginx
from benchmarks.measure import Contender, Options, Sample, Samples, run_command, run_function
from benchmarks.report import Report
from benchmarks.rig import need
from ted_plugins.sources.mirror import Mirror
from ted_plugins.sources.web import Access, origin_of
from ted_plugins.sources.website import WebSource

TED, WGET, ARIA = "ted, http", "wget -m", "aria2c -j 4 -x 4"


def table(options: Options) -> Report:
    need(wget="wget", aria2c="aria2")
    return Report(
        "fetch", "Fetching",
        ["what", "by", "s, median (worst)", "CPU s", "peak MB", "requests, kB", "answers, MB", "speed to wget's"],
        measured(options, nginx, _contenders, WGET, _bytes),
        ["One nginx with one worker on the same machine; served from and written to memory. ted: four connections, "
         "digests of everything, its index; wget: one connection; aria2c: four files at a time, four connections to "
         "one, without allocating before it writes. aria2c does not look for what there is: it is given the list.",
         "*again*: nothing changed, and the files are older than a minute. Bytes as nginx counts them: requests with "
         "their headers, answers with theirs."],
    )  # fmt: skip


def _contenders(root: Path, port: int) -> list[Contender]:
    url = f"http://127.0.0.1:{port}/"

    def fetched(directory: str, run: Callable[[], Sample]) -> Sample:
        sample = counted(root, run)
        run_command(["diff", "-r", str(root / "served"), str(root / directory)])
        return sample

    def ted() -> Sample:
        source = WebSource(url, Access(origin_of(url)))
        mirror = Mirror(root / "ted", source, logging.getLogger("benchmark"))
        return fetched("ted/files", lambda: run_function(mirror.refresh))

    def wget() -> Sample:
        words = ["wget", "-q", "-m", "-np", "-nH", "-R", "index.html*", "-P", str(root / "wget"), url]
        return fetched("wget", lambda: run_command(words))

    def aria() -> Sample:
        words = ["aria2c", "-q", "--no-conf", "-i", str(wanted), "-d", str(root / "aria"), "-j", "4", "-x", "4",
                 "-s", "4", "--file-allocation=none", "--remote-time=true", "--conditional-get=true",
                 "--allow-overwrite=true"]  # fmt: skip
        return fetched("aria", lambda: run_command(words))

    wanted = root / "wanted"
    names = [path.relative_to(root / "served") for path in (root / "served").rglob("*") if path.is_file()]
    wanted.write_text("".join(f"{url}{name}\n out={name}\n" for name in names))
    return [
        *anew_and_again(root, "ted", TED, ted), *anew_and_again(root, "wget", WGET, wget),
        *anew_and_again(root, "aria", ARIA, aria),
    ]  # fmt: skip


def _bytes(found: Samples, name: str) -> list[object]:
    return [f"{found.median(name, 'asked') / 1e3:.1f}", f"{found.median(name, 'answered') / 1e6:.2f}"]
