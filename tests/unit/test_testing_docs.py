"""The pages for authors of types tell of every hook, promise, field and fixture."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from ted import hookspecs, options
from ted.testing import Bench, Distributor, HostileTarget, Sample, Subscriber, Tree, Variant, plugin
from ted.testing.promises import PROMISES

DOCS = Path(__file__).parents[2] / "docs"
TESTING = (DOCS / "testing-a-type.md").read_text()
PLUGINS = (DOCS / "plugins.md").read_text()


@pytest.mark.parametrize("promise", PROMISES.values(), ids=list(PROMISES))
def test_every_promise_has_its_place_where_its_message_points(promise: object) -> None:
    name, says = promise.name, promise.says  # type: ignore[attr-defined]
    section = re.search(rf"^### {name}\n\n(.+?)(?=^##)", TESTING, re.MULTILINE | re.DOTALL)
    assert section, name
    first = re.split(r"[,;:]", says)[0]
    assert first.lower()[:40] in " ".join(section[1].lower().split()), f"{name}: the page must say that {says}"


def test_the_page_names_no_promise_that_there_is_not_and_counts_them() -> None:
    promises = TESTING[TESTING.index("## The promises") : TESTING.index("## Fixtures")]
    assert re.findall(r"^### (\w+)$", promises, re.MULTILINE) == list(PROMISES)
    assert f"{len(PROMISES)} tests, one for each promise" in TESTING


@pytest.mark.parametrize("kind", [Sample, Variant])
def test_every_field_of_a_sample_is_told(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert f"| `{field.name}` |" in TESTING, field.name


@pytest.mark.parametrize("name", ["sources", "target", "secret", "aside", "root", "write", "fill", "enter", "on_end",
                                  "free_port"])  # fmt: skip
def test_what_a_bench_has_is_told(name: str) -> None:
    assert re.search(rf"`bench\.{name}[(`]", TESTING)
    assert hasattr(Bench, name) or f"self.{name} = " in inspect.getsource(Bench.__init__)


def test_every_fixture_is_told() -> None:
    for name in vars(plugin):
        if name.startswith("ted_"):
            assert f"| `{name}` |" in TESTING, name


@pytest.mark.parametrize("kind", [Distributor, Subscriber, Tree, HostileTarget])
def test_what_is_told_of_the_fixtures_is_there(kind: type) -> None:
    (row,) = [line for line in TESTING.splitlines() if re.search(rf"\| an? `{kind.__name__}`", line)]
    for name in re.findall(r"`(\w+)\(", row):
        assert callable(getattr(kind, name)), name


@pytest.mark.parametrize("contract", [hookspecs.BuildContext, hookspecs.InstallContext, hookspecs.Transaction])
def test_everything_a_hook_works_with_is_told(contract: type) -> None:
    for name in vars(contract):
        if not name.startswith("_"):
            assert re.search(rf"`{name}[(`]", PLUGINS), name


def test_every_field_of_the_type_and_all_of_the_options_are_told() -> None:
    for field in dataclasses.fields(hookspecs.TypeInfo):
        assert f"| `{field.name}` |" in PLUGINS, field.name
    for name in {"Options", "Target", "TargetPath", "Mode"} & set(options.__all__):
        assert f"| `{name}` |" in PLUGINS, name
