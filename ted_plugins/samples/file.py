"""A sample of the File type: two targets, one of which is a mirror of its source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ted.testing import Bench, Sample, Variant


def sample(bench: Bench) -> Sample:
    """Return a small distribution of a little of everything."""
    app, etc = bench.sources / "app", bench.sources / "etc"
    bench.write(app / "bin" / "tool", b"#!/bin/sh\necho tool\n", mode=0o755)
    bench.write(app / "readme.txt", b"of the first revision\n")
    bench.write(app / "stays.txt", b"the same in every revision\n", mode=0o640)
    bench.write(app / "rest.tmp", b"left over\n")
    (app / "bin" / "link").symlink_to("tool")
    (app / "absolute").symlink_to(app / "readme.txt")
    os.link(app / "readme.txt", app / "second-name.txt")
    bench.write(etc / "app.conf", b"setting = 1\n", mode=0o600)
    bench.write(bench.sources / "other" / "other.txt", b"another source\n")
    options = {
        "targets": [
            {"path": "%DEST_VOLUME%/app", "from": [f"{app}/"], "synchronize": True},
            {"path": f"{bench.target}/etc", "from": [f"{etc}/app.conf"], "mode": "0640"},
        ],
        "outside_links": "keep",
    }

    def change() -> None:
        (app / "readme.txt").write_text("of the second revision\n")
        (app / "bin" / "link").unlink()
        bench.write(app / "new" / "file.txt", b"new\n")

    return Sample(
        options, change, [bench.target / "app", bench.target / "etc"],
        mirrors={bench.target / "app": app}, variants=variants(bench, app),
        inert={
            "retries": "shows only in time: how often a locked file is tried",
            "on_locked": "shows only where another process holds a file of the target",
            **({} if os.geteuid() == 0 else dict.fromkeys(("targets.owner", "targets.group"), "needs root")),
        },
        grow=lambda size: bench.fill(app / "large.bin", size),
    )  # fmt: skip


def variants(bench: Bench, app: Path) -> list[Variant]:
    """Return what makes each option show."""
    target = bench.target / "app"

    def foreign() -> None:
        bench.write(target / "readme.txt", b"somebody else's, and newer\n")

    def in_the_way() -> None:
        bench.write(bench.target / "etc" / "app.conf" / "theirs.txt", b"not ted's\n")

    def to_be_removed() -> None:
        bench.write(bench.target / "etc" / "old.conf", b"old\n")

    def nothing_there() -> None:
        for directory, names, files in os.walk(app, topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
            for name in names:
                path = os.path.join(directory, name)
                os.unlink(path) if os.path.islink(path) else os.rmdir(path)

    root: list[Any] = ["daemon", 1] if os.geteuid() == 0 else []
    nobody = [Variant(f"targets.0.{each}", value) for each in ("owner", "group") for value in root]
    return [
        Variant("targets.0.path", f"{bench.target}/another"),
        Variant("targets.0.from", [f"{bench.sources}/other/"]),
        Variant("targets.0.exclude", ["*.tmp"]),
        Variant("targets.0.synchronize", value=False, given=lambda: _add(bench, target / "stranger.txt")),
        Variant("targets.1.mode", "0644"),
        Variant("targets.0.mode", "0600"),
        Variant("targets.1.remove", ["old.conf"], given=to_be_removed),
        Variant("overwrite", "never", given=foreign),
        Variant("overwrite", "newer", given=foreign),
        Variant("on_error", "continue", given=in_the_way),
        Variant("allow_empty", value=True, sources=nothing_there),
        Variant("outside_links", "refuse"),
        Variant("verify", value=True),
        *nobody,
    ]  # fmt: skip


def _add(bench: Bench, path: Path) -> None:
    bench.write(path, b"somebody else's\n")
