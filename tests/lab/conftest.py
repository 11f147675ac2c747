"""A lab of its own for each test; gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_rig import Lab


@pytest.fixture
def lab_of(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Lab]]:
    """Yield a function that brings up a lab by its spec; it is taken down whatever happens."""
    labs: list[Lab] = []

    def up(spec: dict[str, Any]) -> Lab:
        path = tmp_path / "spec.yml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        lab = Lab(f"t{os.getpid()}{len(labs)}", tmp_path / "lab")
        labs.append(lab)
        lab.call("up", str(path))
        return lab

    yield up
    for lab in labs:
        lab.call("down")
