"""How fast a tree becomes a revision, and what a small change costs.

    python benchmarks/build.py TREE [LEVEL]

Copies TREE to a temporary directory (TMPDIR decides where), builds it, builds it again unchanged (without and with a
cache), adds a line to one file, builds, and reads everything back. Prints one JSON document: seconds, MB/s, bytes, peak
memory. Compare only figures of one run on an idle machine.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ted.content.builder import BuildResult, RevisionBuilder
from ted.content.revision import Revision

CACHE_TRUSTS_AFTER_S = 2.1


def main() -> None:
    tree, level = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory(prefix="ted-bench-") as name:
        print(json.dumps(measure(tree, Path(name), level), indent=1))


def measure(tree: Path, root: Path, level: int) -> dict[str, Any]:
    source, directory = root / "source", root / "work"
    shutil.copytree(tree, source, symlinks=True)
    time.sleep(CACHE_TRUSTS_AFTER_S)

    def build() -> BuildResult:
        with RevisionBuilder(directory, "hq", "bench", "file", {}, {}, level=level, cache=root / "cache") as builder:
            builder.add_tree(source, "data/0", contents_only=True, outside_links="keep")
            return builder.finish()

    first = build()
    again = build()
    changed = max((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size < 8192)
    with changed.open("ab") as file:
        file.write(b"one line more\n")
    after = build()
    started_s = time.perf_counter()
    with Revision(directory, after.record).open() as reader:
        reader.verify_frames()
    verify_s = time.perf_counter() - started_s
    content = first.record.content_bytes
    return {
        "files": first.files,
        "content_bytes": content,
        "level": level,
        "build": {"s": round(first.duration_s, 2), "MB_s": round(content / 1e6 / first.duration_s, 1)},
        "pack_bytes": first.bytes_new,
        "frames": first.frames_new,
        "unchanged": {"s": round(again.duration_s, 2), "changed": again.changed},
        "one_line": {"s": round(after.duration_s, 2), "pack_bytes": after.bytes_new, "frames": after.frames_new},
        "verify": {"s": round(verify_s, 2), "MB_s": round(content / 1e6 / verify_s, 1)},
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
