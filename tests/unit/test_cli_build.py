"""What ``ted build`` shows a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted.cli import build_cmd
from ted.cli.main import Settings


def built(patch_bytes: int | None, name: str = "price-list") -> dict[str, Any]:
    return {
        "distribution": name, "revision": "20261122T125447123456Z", "changed": True, "files": 12345, "error": None,
        "content_bytes": 999_900_000, "bytes": 7_100_000, "patch_bytes": patch_bytes, "duration_s": 123.4,
    }  # fmt: skip


def test_the_patch_stands_beside_the_new_bytes_in_a_table_of_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(inventory=None, config=Path("ted"), as_json=False, verbose=False)
    failed = {"distribution": "other", "revision": None, "changed": False, "error": {"message": "no"}}
    build_cmd._show(settings, [built(532), built(None), failed], check=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-4:] == ["new", "bytes", "patch", "s"]
    assert lines[2].split()[-5:] == ["7.1", "MB", "532", "B", "123.4"]
    assert lines[3].split()[-4:] == ["7.1", "MB", "-", "123.4"]
    assert lines[4].split() == ["other", "-", "failed"]
    assert max(len(line) for line in lines) <= 100, lines
