"""A lab of its own for each test; gone afterwards, even when the run is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lab_rig import Lab, LabFleet

NUMBER = count()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LabFleet]:
    """Yield an empty fleet to be placed in a lab; its agents end with the test."""
    fleet = LabFleet(tmp_path)
    yield fleet
    fleet.close()


@pytest.fixture
def lab_of(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Lab]]:
    """Yield a function that brings up a lab with these sites."""
    labs: list[Lab] = []

    def up(sites: dict[str, Any]) -> Lab:
        labs.append(Lab(f"t{os.getpid()}x{next(NUMBER)}", tmp_path / "lab", {"sites": sites}))
        return labs[-1]

    yield up
    for lab in labs:
        lab.call("down")
