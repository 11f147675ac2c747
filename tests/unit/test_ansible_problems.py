"""How the role tells the doubts of ``ted check``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

LOOKUPS = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution/plugins/lookup"


@pytest.fixture(scope="module")
def problems() -> Any:
    spec = importlib.util.spec_from_file_location("ted_problems", LOOKUPS / "problems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def doubt(host: str | None, message: str) -> dict[str, Any]:
    return {"host": host, "variable": "ted_variables", "message": message, "hint": "define it"}


def test_what_many_hosts_have_alike_is_one_warning(problems: Any) -> None:
    (said,) = problems.warning_texts([doubt(f"s{number:02}", "%SITE% is not defined") for number in range(9)])
    assert said == "s00, s01, s02, s03 and 5 more: ted_variables: %SITE% is not defined (define it)"


def test_the_number_of_warnings_is_bounded_and_the_rest_is_counted(problems: Any) -> None:
    said = problems.warning_texts([doubt(None, f"doubt {number}") for number in range(500)])
    assert len(said) == problems.WARNINGS_SHOWN + 1
    assert said[-1].startswith("490 more doubts")
