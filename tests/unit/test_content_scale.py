"""Large and many: time and memory stay within what was promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BUILD = """
import json, re, sys, time
from pathlib import Path
from ted.content.builder import RevisionBuilder
from ted.content.revision import Revision
directory, source, cache = map(Path, sys.argv[1:4])
begun = time.process_time()
with RevisionBuilder(directory, "hq", "lib", "file", {}, {}, cache=cache) as builder:
    builder.add_tree(source, "data/0", contents_only=True)
    result = builder.finish()
built = time.process_time()
if sys.argv[4:]:
    with Revision(directory, result.record).open() as reader:
        reader.verify_frames()
print(json.dumps({"build_cpu_s": built - begun, "changed": result.changed,
                  "files": result.files, "bytes": result.bytes_new, "frames": result.frames_new,
                  "peak_bytes": int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024}))
"""


def build(tmp_path: Path, *words: str) -> dict[str, Any]:
    paths = [str(tmp_path / "work" / "hq" / "lib"), str(tmp_path / "source"), str(tmp_path / "cache")]
    command = [sys.executable, "-c", BUILD, *paths, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    result: dict[str, Any] = json.loads(done.stdout)
    print(result)
    return result


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    """1 GiB: a quarter of random bytes, the rest holes."""
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "large").open("wb") as file:
        for number in range(16):
            file.seek(number << 26)
            file.write(os.urandom(16 << 20))
        file.truncate(1 << 30)
    result = build(tmp_path, "verify")
    assert result["peak_bytes"] < 256 << 20
    assert 256 << 20 <= result["bytes"] < 260 << 20


@pytest.mark.long
def test_100_000_small_files_build_in_less_than_a_minute_of_cpu(tmp_path: Path) -> None:
    for number in range(200):
        below = tmp_path / "source" / f"d{number:03}"
        below.mkdir(parents=True)
        fd = os.open(below, os.O_RDONLY)
        for each in range(500):
            file = os.open(f"f{each:03}.conf", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
            os.write(file, b"setting %d of %d is on\n" % (each, number))
            os.close(file)
        os.close(fd)
    time.sleep(2.1)  # younger files are not remembered
    first = build(tmp_path)
    assert (first["files"], first["changed"]) == (100_000, True)
    assert first["build_cpu_s"] < 60
    assert first["frames"] < 5000
    assert first["peak_bytes"] < 256 << 20
    again = build(tmp_path)
    assert not again["changed"]
    assert again["build_cpu_s"] < 30
