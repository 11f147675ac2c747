"""What ``--diff`` of the module build shows: from which revision to which, and how much is new."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "collections" / "ansible_collections" / "ted" / "distribution" / "plugins" / "modules"
R1, R2 = "20260101T000000000000Z", "20260102T000000000000Z"


@pytest.fixture(scope="module")
def build() -> Any:
    """Yield the module's code, with the collection found where Ansible would find it."""
    sys.path.insert(0, str(ROOT / "collections"))
    spec = importlib.util.spec_from_file_location("ted_build_module", MODULES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "collections"))


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        ({"revision": R1, "former": None}, "none", R1),
        ({"revision": R2, "former": R1}, R1, R2),
        ({"revision": None, "former": None, "check": True}, "none", "a new one"),
        ({"revision": R1, "former": R1, "check": True}, R1, "a new one"),
    ],
)
def test_a_diff_names_the_former_revision(build: Any, said: dict[str, Any], before: str, after: str) -> None:
    shown = build.diff_of({"distribution": "app", "bytes": 20480, **said})
    assert shown["before"] == f"revision: {before}\n"
    assert shown["after"] == f"revision: {after}\nbytes of new content: 20480\n"


def test_a_diff_has_the_size_of_the_patch_where_there_is_one(build: Any) -> None:
    row = {"distribution": "app", "revision": R2, "former": R1, "bytes": 20480}
    assert build.diff_of(row | {"patch_bytes": 532})["after"].endswith("content: 20480\nbytes of the patch: 532\n")
    assert "patch" not in build.diff_of(row | {"patch_bytes": None})["after"]
