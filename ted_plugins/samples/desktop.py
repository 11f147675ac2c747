"""A sample of the Desktop type: two applications, one of which needs the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ted.testing import Bench, Sample, Variant
from ted_plugins.desktop import caches

GENERATED = (*caches.OF_MIME, "application", "application/*")
ENTRY = {"Name": "Till", "Name[de]": "Kasse", "Exec": "bin/till %f", "Categories": "Office;"}


def sample(bench: Bench) -> Sample:
    """Return a small distribution."""
    golden = bench.sources / "golden"
    for name in ("till", "viewer"):
        bench.write(golden / name / "bin" / name, f"#!/bin/sh\necho {name}\n".encode(), mode=0o755)
    bench.write(golden / "till" / "rest.tmp", b"left over\n")
    bench.write(golden / "till.png", b"\x89PNG a picture")
    bench.write(golden / "other.png", b"\x89PNG another")
    bench.write(golden / "other" / "bin" / "till", b"#!/bin/sh\necho other\n", mode=0o755)
    till = {
        "name": "till", "version": "1.0", "from": [f"{golden}/till/"], "entry": ENTRY, "folder": "Shop/Front",
        "icons": {"48x48": f"{golden}/till.png"}, "requires": ["viewer"],
        "mime": [{"type": "application/x-till", "comment": "Receipt", "patterns": ["*.till"], "default": True}],
    }  # fmt: skip
    viewer = {
        "name": "viewer", "from": [f"{golden}/viewer/"], "entry": {"Name": "Viewer", "Exec": "bin/viewer"},
        "folder": "Shop",
    }  # fmt: skip
    share = bench.target / "share"
    options: dict[str, Any] = {
        "applications": [till, viewer], "path": f"{bench.target}/opt", "share": str(share),
        "source_root": str(golden), "maintain_tree": True, "maintain_associations": True,
        "mirrors": ["/mnt/a"], "mirror_order": "fault_tolerance",
    }  # fmt: skip

    def change() -> None:
        (golden / "till" / "bin" / "till").write_text("#!/bin/sh\necho the second\n")
        bench.write(golden / "till" / "new.txt", b"new\n")

    return Sample(
        options, change, [bench.target / "opt", share],
        mirrors={bench.target / "opt" / "Shop" / "viewer": golden / "viewer"},
        variants=variants(bench, golden, share),
        inert={
            "applications.groups": "changes the machine's list of groups",
            "rebuild_on_version_only": "shows only from one revision to the next",
        },
        grow=lambda size: bench.fill(golden / "till" / "large.bin", size),
        volatile=[f"{share}/applications/mimeinfo.cache", *(f"{share}/mime/{name}" for name in GENERATED)],
        outcome=lambda: known_kinds(share),
    )  # fmt: skip


def known_kinds(share: Path) -> list[str]:
    """Return what the desktop's caches say: which kinds of files there are, and what opens them."""
    found = []
    for name in ("applications/mimeinfo.cache", "mime/globs2"):
        try:
            lines = (share / name).read_text(errors="replace").splitlines()
        except (FileNotFoundError, IsADirectoryError):
            continue
        found += [line for line in lines if "x-till" in line or "x-receipt" in line]
    return found


def variants(bench: Bench, golden: Path, share: Path) -> list[Variant]:
    """Return what makes each option show."""

    def entry_there() -> None:
        text = b"[Desktop Entry]\nType=Application\nName=Ours\nExec=ours\n"
        bench.write(share / "applications" / "till.desktop", text)

    def folder_there() -> None:
        text = b"[Desktop Entry]\nType=Directory\nName=Ours\n"
        bench.write(share / "desktop-directories" / "Shop.directory", text)

    def stranger_there() -> None:
        bench.write(bench.target / "opt" / "Shop" / "Front" / "till" / "stranger.txt", b"somebody else's\n")

    def nothing_there() -> None:
        for directory, names, files in os.walk(golden / "till", topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
            for name in names:
                os.rmdir(os.path.join(directory, name))

    first = "applications.0"
    return [
        Variant(f"{first}.name", "cashier"),
        Variant(f"{first}.version", "1.1"),
        Variant(f"{first}.entry", {**ENTRY, "Comment": "Sells"}),
        Variant(f"{first}.from", [f"{golden}/other/"]),
        Variant(f"{first}.exclude", ["*.tmp"]),
        Variant(f"{first}.icons", {"48x48": f"{golden}/other.png"}),
        Variant(f"{first}.mime.0.type", "application/x-receipt"),
        Variant(f"{first}.mime.0.comment", "Bill"),
        Variant(f"{first}.mime.0.patterns", ["*.bill"]),
        Variant(f"{first}.mime.0.default", value=False),
        Variant(f"{first}.folder", "Shop/Back"),
        Variant(f"{first}.requires", ["nobody"]),
        Variant("path", f"{bench.target}/opt/elsewhere"),
        Variant("share", f"{share}/elsewhere"),
        Variant("source_root", "/nowhere"),
        Variant("mirrors", ["/mnt/b"]),
        Variant("preserve", ["Name"], given=entry_there),
        Variant("overwrite_folders", value=True, given=folder_there),
        Variant("synchronize", value=True, given=stranger_there),
        Variant("allow_empty", value=True, sources=nothing_there),
    ]
