"""The tutorial on writing a type, and what ``ted types new`` writes: both work as they are, installed with pip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "write-a-type.md"
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment of its own in which ted is installed; pip needs no network, and builds with what is here."""
    venv.create(tmp_path / "venv", with_pip=False)
    inside = tmp_path / "venv" / "lib" / Path(sysconfig.get_paths()["purelib"]).parent.name / "site-packages"
    (inside / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    programs = tmp_path / "venv" / "bin"
    for name in ("ted", "pytest"):
        (programs / name).write_text(f"#!/bin/sh\nexec {programs}/python -m {name} \"$@\"\n")
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TED"))}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: none
        "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_WARN_SCRIPT_LOCATION": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def run(script: str, where: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(["sh", "-eux"], input=script, cwd=where, env=environment, text=True, capture_output=True,
                          timeout=360, check=False)  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def script_of(page: str) -> str:
    """Return the code blocks of a page as one script: shell as it is, the others as files, named in the first line."""
    lines = []
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "sh":
            lines.append(code)
            continue
        name, more, text = re.match(r"# (\S+)( \(goes on\))?\n(.*)", code, re.DOTALL).groups()  # type: ignore[union-attr]
        gap = "\n\n" if more else ""
        lines.append(f"cat {'>>' if more else '>'}{name} <<'END OF BLOCK'\n{gap}{text}END OF BLOCK\n")
    return "\n".join(lines)


def test_the_tutorial_works_as_it_is_written(tmp_path: Path, environment: dict[str, str]) -> None:
    said = run(script_of(PAGE.read_text()), tmp_path, environment)
    assert "19 passed" in said
    assert "Branch whose newest commit is sent." in said
    own = [line for line in (tmp_path / "ted-git" / "ted_git.py").read_text().split("@hookimpl\ndef ted_sample")[0]
           .splitlines() if line.strip() and not line.startswith(("import", "from", '"""'))]  # fmt: skip
    assert len(own) <= 30, "a type of a few options needs at most 30 lines of its own"


def test_a_new_package_installs_passes_its_tests_and_is_listed(tmp_path: Path, environment: dict[str, str]) -> None:
    said = run("ted types new shop-window\ncd ted-shop-window\npython -m pip install --quiet -e .\nted types\npytest\n",
               tmp_path, environment)  # fmt: skip
    assert "shop-window  Files of a directory" in said
    assert "22 passed" in said
    again = subprocess.run(["ted", "types", "new", "shop-window"], cwd=tmp_path, env=environment, text=True,
                           capture_output=True, check=False)  # fmt: skip
    assert again.returncode == 14
    assert "there is a type 'shop-window' already, of ted-shop-window" in again.stderr


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ted-shop-window").mkdir()
    done = subprocess.run([sys.executable, "-m", "ted", "types", "new", "shop-window"], cwd=tmp_path, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 10
    assert "is there already" in done.stderr
    assert list((tmp_path / "ted-shop-window").iterdir()) == []


@pytest.mark.parametrize("name", ["Shop", "new", "../x", "a b", "x" * 50, "deb"])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, environment: dict[str, str], name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "ted", "types", "new", name], cwd=tmp_path, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 14
    assert list(tmp_path.glob("ted-*")) == []
