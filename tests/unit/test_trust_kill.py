"""kill -9 of whoever writes a catalog, at every step and at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ted.errors import MissingContentError
from ted.trust.anchors import TrustStore
from ted.trust.catalog import Catalog
from ted.trust.chain import read_metadata
from ted.trust.view import CatalogView

FIRST = "20261122T125447123456Z"
SECOND = "20261123T010203000001Z"
KILLED = -signal.SIGKILL


def killed_at_change(number: int, job: Callable[[], object]) -> bool:
    """Run ``job`` in a child that kills itself before its ``number``-th change of a name on disk."""
    child = os.fork()
    if child == 0:  # pragma: no cover - dies or leaves at once
        seen = 0

        def hook(event: str, _args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        status = 1
        try:
            job()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0
    return os.WIFSIGNALED(ended)


def catalog(base: Path) -> Catalog:
    return Catalog(base / "wd/hq/.catalog", base / "keys")


def served_by(directory: Path) -> Callable[[str, int], bytes]:
    def fetch(name: str, _max_bytes: int) -> bytes:
        data = read_metadata(directory, name)
        if data is None:
            raise MissingContentError(name)
        return data

    return fetch


def seen(source: Path, root: bytes, base: Path) -> dict[str, list[str]]:
    """Return what a node that knows nothing yet but ``root`` sees in ``source``."""
    store = TrustStore(base / "trust")
    store.import_root(root, force=True)
    view = CatalogView("hq", store.path("hq"), base / "wd/hq/.catalog", served_by(source))
    view.refresh()
    return {name: view.revisions(name) for name in view.distributions}


JOBS: dict[str, Callable[[Catalog], object]] = {
    "publish": lambda catalog: catalog.publish("dat", {FIRST: b"one", SECOND: b"two"}),
    "publish a new one": lambda catalog: catalog.publish("new", {FIRST: b"one"}),
    "remove": lambda catalog: catalog.remove("pos"),
    "rotate root": lambda catalog: catalog.rotate("root"),
    "rotate timestamp": lambda catalog: catalog.rotate("timestamp"),
    "rotate snapshot": lambda catalog: catalog.rotate("snapshot"),
    "rotate targets": lambda catalog: catalog.rotate("targets"),
    "rotate dat": lambda catalog: catalog.rotate("dat"),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_distributor_killed_at_any_step_is_readable_and_heals(tmp_path: Path, name: str) -> None:
    steps = 0
    while True:
        steps += 1
        base = tmp_path / str(steps)
        made = catalog(base)
        made.create("hq")
        made.publish("dat", {FIRST: b"one"})
        made.publish("pos", {FIRST: b"one"})
        root = made.root_bytes()
        before = {"dat": [FIRST], "pos": [FIRST]}
        killed = killed_at_change(steps, lambda: JOBS[name](catalog(base)))  # noqa: B023
        found = seen(made.directory, root, base / "reader")
        after = dict(before)
        if name == "publish":
            after["dat"] = [FIRST, SECOND]
        elif name == "publish a new one":
            after["new"] = [FIRST]
        elif name == "remove":
            del after["pos"]
        assert found in ((before, after) if killed else (after,))
        JOBS[name](catalog(base))
        assert seen(made.directory, root, base / "reader") == after
        assert seen(made.directory, root, base / "another reader") == after
        assert not list(made.directory.glob(".tmp-*"))
        if not killed:
            break
    assert steps > 3


def test_a_distributor_killed_while_it_is_made_is_made_by_the_next_call(tmp_path: Path) -> None:
    steps = 0
    while True:
        steps += 1
        base = tmp_path / str(steps)
        killed = killed_at_change(steps, lambda: catalog(base).create("hq"))  # noqa: B023
        catalog(base).create("hq")
        assert catalog(base).create("hq") is False
        catalog(base).publish("dat", {FIRST: b"one"})
        assert seen(catalog(base).directory, catalog(base).root_bytes(), base / "reader") == {"dat": [FIRST]}
        assert len(list((base / "keys").glob("*.pem"))) == 5
        if not killed:
            break
    assert steps > 8


@pytest.mark.parametrize("change", ["publish a new one", "rotate timestamp"])
def test_a_relay_killed_at_any_step_of_a_refresh_serves_a_whole_state(tmp_path: Path, change: str) -> None:
    """After the kill the agent starts again: it opens its views, then serves."""
    made = catalog(tmp_path)
    made.create("hq")
    made.publish("dat", {FIRST: b"one"})
    root = made.root_bytes()
    before = seen(made.directory, root, tmp_path / "relay")
    JOBS[change](made)
    after = before | ({"new": [FIRST]} if change == "publish a new one" else {})
    killed, steps = True, 0
    while killed:
        steps += 1
        base = tmp_path / f"relay {steps}"
        shutil.copytree(tmp_path / "relay", base)
        directory = base / "wd/hq/.catalog"
        killed = killed_at_change(steps, lambda: seen(made.directory, root, base))  # noqa: B023
        CatalogView("hq", base / "trust/hq/root.json", directory).load()
        assert seen(directory, root, base / "child") in (before, after)
        assert seen(made.directory, root, base) == after
        assert seen(directory, root, base / "child") == after
    assert steps > 5


PUBLISHER = """
import sys, time
from pathlib import Path
from ted.trust.catalog import Catalog
catalog = Catalog(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
for number in range(10_000):
    stamps = [f"20261122T{number * 7 + each:012d}Z" for each in range(3)]
    catalog.publish("dat", {stamp: stamp.encode() for stamp in stamps})
    if number % 10 == 9:
        catalog.rotate(("timestamp", "snapshot", "root", "dat", "targets")[number // 10 % 5])
"""


def test_a_distributor_killed_at_random_moments_never_loses_its_catalog(tmp_path: Path) -> None:
    made = catalog(tmp_path)
    made.create("hq")
    root = made.root_bytes()
    chance = random.Random(20261122)
    store = TrustStore(tmp_path / "reader/trust")
    store.import_root(root)
    version = 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(made.directory), str(tmp_path / "keys")],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        assert process.wait() == KILLED
        process.stdout.close()
        directory = tmp_path / "reader/wd/hq/.catalog"
        view = CatalogView("hq", store.path("hq"), directory, served_by(made.directory))
        view.refresh()
        assert view.timestamp_version >= version
        version = view.timestamp_version
        if view.distributions:
            assert len(view.revisions("dat")) == 3
    assert catalog(tmp_path).publish("dat", {FIRST: b"the last word"}) is True
    assert seen(made.directory, root, tmp_path / "newcomer") == {"dat": [FIRST]}
    assert version > 12
