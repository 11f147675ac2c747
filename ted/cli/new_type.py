"""The package that ``ted types new NAME`` writes: small, whole, and it keeps every promise of a type.

Rules:
 * Nothing that is there is written over.
 * What is written passes its own tests as it is: whoever begins, begins from green.
"""

from __future__ import annotations

import re
from pathlib import Path

from ted.errors import ConfigError, UsageError

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MOST_CHARACTERS = 40


def write_package(name: str, directory: Path) -> list[Path]:
    """Write the package of a type below ``directory`` and return its files.

    Raises:
        UsageError: That cannot be the name of a type.
        ConfigError: There is something already.
    """
    if not _NAME.fullmatch(name) or len(name) > _MOST_CHARACTERS or name == "new":
        raise UsageError(f"{name!r:.60} cannot be the name of a type",
                         hint="small letters and digits, words joined by - or _: notes, git-branch")  # fmt: skip
    module = f"ted_{name.replace('-', '_')}"
    root = directory / f"ted-{name.replace('_', '-')}"
    try:
        root.mkdir(parents=True)
        (root / "tests").mkdir()
    except FileExistsError as error:
        raise ConfigError(f"{root} is there already", hint="name another type or --directory") from error
    except OSError as error:
        raise ConfigError(f"{root}: {error.strerror or error}", hint="name another --directory") from error
    files = []
    for place, text in _FILES.items():
        path = root / place.replace("MODULE", module)
        written = text.replace("@MODULE@", module).replace("@NAME@", name).replace("@PACKAGE@", root.name)
        path.write_text(written, encoding="utf-8")
        files.append(path)
    return files


_FILES = {
    "pyproject.toml": '''\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "@PACKAGE@"
version = "0.1.0"
description = "The distribution type @NAME@ for ted"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["ted>=0.1"]

[project.optional-dependencies]
test = ["pytest>=8.2"]

[project.entry-points.ted]
@NAME@ = "@MODULE@"

[tool.hatch.build.targets.wheel]
only-include = ["@MODULE@.py"]

[tool.pytest.ini_options]
testpaths = ["tests"]
''',
    "MODULE.py": '''\
"""The distribution type @NAME@: files of a directory of the Distributor, put into a directory of each Subscriber."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field

from ted import hookimpl
from ted.errors import EmptySourceError
from ted.hookspecs import BuildContext, InstallContext, TypeInfo
from ted.options import Target


class Options(Target):
    """What an inventory writes below `options`: `source`, and what every Target has (`path`, `mode`, `owner` ...)."""

    source: str = Field(min_length=1, description="Directory on the Distributor.")


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo("@NAME@", "Files of a directory", Options)


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Gather the content, on the Distributor."""
    source = build.options.source
    if not os.path.isdir(source):
        raise EmptySourceError(f"{source}: is no directory", hint="name a directory of the Distributor as `source`")
    build.add_tree(source, "files", contents_only=True)


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Plan what makes a Subscriber have it."""
    install.options.place(install, "files")


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return a small distribution for the contract suite: `pytest --ted-type @NAME@`."""
    from ted.testing import Sample, Variant

    source, target = bench.sources / "files", bench.target / "files"
    bench.write(source / "hello.txt", b"hello\\n")
    bench.write(source / "bin" / "tool", b"#!/bin/sh\\n", mode=0o755)
    bench.write(bench.sources / "other" / "other.txt", b"another source\\n")
    return Sample(
        options={"source": str(source), "path": str(target)},
        change=lambda: bench.write(source / "hello.txt", b"hello again\\n"),
        targets=[target],
        mirrors={target: source},
        variants=[Variant("source", f"{bench.sources}/other")],
        grow=lambda size: bench.fill(source / "large.bin", size),
    )
''',
    "tests/test_MODULE.py": '''\
"""The type @NAME@ keeps the promises of every type, and its own."""

from __future__ import annotations

import pytest

from ted.errors import EmptySourceError, OptionsError
from ted.testing.contract import suite

test_contract = suite("@NAME@")


@pytest.fixture
def ted_type():
    """The type that the fixtures of ted build."""
    return "@NAME@"


def test_files_arrive(ted_bench, ted_distributor, ted_subscriber):
    """What is in the source is in the target, and a rollback takes it away."""
    ted_bench.write(ted_bench.sources / "hello.txt", b"hello\\n")
    ted_distributor.build({"source": str(ted_bench.sources), "path": "%DEST_VOLUME%/there"})
    assert ted_subscriber.extract().changed
    assert (ted_bench.target / "there" / "hello.txt").read_text() == "hello\\n"
    ted_subscriber.rollback()
    assert not (ted_bench.target / "there").exists()


def test_a_source_that_is_gone_is_an_error(ted_bench, ted_distributor):
    """The former revision stays; nobody gets an empty one."""
    with pytest.raises(EmptySourceError, match="is no directory"):
        ted_distributor.build({"source": str(ted_bench.sources / "gone")})


def test_a_source_is_required(ted_distributor):
    """An inventory without it is refused."""
    with pytest.raises(OptionsError, match="source"):
        ted_distributor.build({})
''',
    "README.md": '''\
# @PACKAGE@

The distribution type `@NAME@` for ted: files of a directory of the Distributor, put into a directory of each
Subscriber.

```yaml
ted_distributions:
  example:
    type: @NAME@
    channels: [shops]
    options:
      source: /build/example
      path: /srv/example
```

## Develop

```sh
python -m pip install -e '.[test]'
ted types @NAME@                 # its options
pytest                           # its tests, with the contract suite of ted
pytest --ted-type @NAME@         # the contract suite alone, wherever the package is installed
```

Begin in `@MODULE@.py`: the options, what is gathered on the Distributor (`ted_build`), what is planned on a Subscriber
(`ted_extract`), and the sample that the contract suite works with (`ted_sample`).
''',
}
