"""The pytest plugin: ``--ted-type`` in any directory, for any installed type, and no weight for others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

PLAIN = '''
from pydantic import BaseModel, ConfigDict, Field
from ted import hookimpl
from ted.hookspecs import TypeInfo

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sources: list[str] = Field(alias="from", description="Directories of the Distributor.")
    path: str = Field(description="Directory of the Subscriber.")

@hookimpl
def ted_type():
    return TypeInfo("plain", "Copies directories", Options)

@hookimpl
def ted_build(build):
    for number, source in enumerate(build.options.sources):
        build.add_tree(source, str(number), contents_only=True)

@hookimpl
def ted_extract(install):
    for number in range(len(install.options.sources)):
        install.place(str(number), install.expand(install.options.path))
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return install(tmp_path, PLAIN)


def install(tmp_path: Path, source: str) -> Path:
    """Make a directory in which a package with a plugin is installed."""
    site = tmp_path / "site"
    about = site / "ted_plain-1.dist-info"
    about.mkdir(parents=True)
    (site / "ted_plain.py").write_text(source)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ted-plain\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[ted]\nplain = ted_plain\n")
    return site


def run(where: Path, *words: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *words], cwd=where, text=True,
        capture_output=True, check=False, env={**kept, "PYTHONPATH": str(site or "")},
    )  # fmt: skip


def test_a_type_without_a_sample_is_tested_with_one_that_is_derived(tmp_path: Path, site: Path) -> None:
    (tmp_path / "test_of_somebody_else.py").write_text("def test_it():\n    assert False\n")
    done = run(tmp_path, "--ted-type", "plain", "-k", "described or options or deterministic or rollback", site=site)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing-a-type.md").read_text()
    included, sample, own = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    site = install(tmp_path, PLAIN.replace('TypeInfo("plain"', 'TypeInfo("notes"') + sample)
    (tmp_path / "test_own.py").write_text(included + own)
    done = run(tmp_path, "test_own.py", "-k", "link or options or faithful or notices", site=site)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_paths_on_the_command_line_are_tested_as_well(tmp_path: Path, site: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_it(ted_bench):\n    assert ted_bench.sources.is_dir()\n")
    done = run(tmp_path, "--ted-type", "plain", "test_own.py", "-k", "test_it or described", site=site)
    assert "2 passed" in done.stdout


def test_a_broken_promise_is_told_in_a_sentence_and_without_the_lines_of_the_suite(tmp_path: Path) -> None:
    leak = "    import time\n    build.add_bytes('t', str(time.time()).encode())\n    for number, source in"
    broken = PLAIN.replace("    for number, source in", leak)
    done = run(tmp_path, "--ted-type", "plain", "-k", "deterministic", site=install(tmp_path, broken))
    assert done.returncode == 1
    assert "build is not deterministic: two builds of the same sources" in done.stdout
    assert "docs/testing-a-type.md#deterministic" in done.stdout
    assert ".py:" not in done.stdout.split("short test summary")[0]


def test_a_type_whose_sample_cannot_be_derived_says_how_to_bring_one(tmp_path: Path) -> None:
    odd = PLAIN.replace("path: str", "levels: dict[str, int]").replace("install.options.path", "'/nowhere'")
    done = run(tmp_path, "--ted-type", "plain", "-k", "installs", site=install(tmp_path, odd))
    assert "implement the hook `ted_sample(bench)`" in done.stdout
    assert "levels" in done.stdout


def test_a_type_that_is_not_installed_ends_it_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "--ted-type", "fiel")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "did you mean 'file'" in done.stdout + done.stderr


def test_a_pytest_that_does_not_use_it_loads_nothing_of_ted(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] in ('ted', 'pydantic', 'pluggy_ted')}\n"
        "    assert loaded == {'ted', 'ted.testing', 'ted.testing.plugin'}\n"
    )
    done = run(tmp_path, "-W", "error", "test_it.py")
    assert done.returncode == 0, done.stdout


def test_what_a_suite_did_leaves_nothing_behind(tmp_path: Path, site: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--ted-type", "plain", "-k",
         "killable or confined"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    said, _ = process.communicate()
    assert process.returncode == 0, said
    for place in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        assert list(place.glob(f"ted-bench-{process.pid}-*")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
