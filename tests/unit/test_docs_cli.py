"""The page of the command line is the one the parser makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run([sys.executable, str(ROOT / "scripts" / "make-cli-reference")],
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert (ROOT / "docs" / "cli.md").read_text() == made, "run scripts/make-cli-reference >docs/cli.md"
