"""Laws of the installer: whatever two trees hold."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from install_depot import Depot
from install_trees import Tree, make, plan, snapshot, trees

from ted.errors import TargetError, UnsafePathError
from ted.install import Transaction
from ted.install.transaction import Policy

LAWS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@contextmanager
def places(across: bool = False) -> Iterator[tuple[Path, Path]]:
    """Yield a directory for targets and one for the working directory; on two file systems where there are two."""
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    one = Path(tempfile.mkdtemp(prefix="ted-laws-", dir=memory))
    other = Path(tempfile.mkdtemp(prefix="ted-laws-", dir=None if across else memory))
    try:
        yield one, other
    finally:
        shutil.rmtree(one)
        shutil.rmtree(other)


@LAWS
@given(before=trees(), after=trees(), across=st.booleans())
def test_undo_restores_the_tree_that_was_there(before: Tree, after: Tree, across: bool) -> None:
    with places(across) as (top, work):
        root, reference = top / "target", top / "reference"
        for directory, tree in ((root, before), (reference, after)):
            directory.mkdir()
            make(directory, tree)
            os.utime(directory, ns=(5 * 10**17, 5 * 10**17))
        held = snapshot(root)
        with Transaction(work / "tx" / "1", policy=Policy(retries=0)) as transaction:
            plan(transaction, root, after, delete=[path for path in before if b"/" not in path and path not in after])
            transaction.commit()
        found = snapshot(root)
        assert {path: found[path] for path in after} == {p: v for p, v in snapshot(reference).items() if p}
        with Transaction.open(work / "tx" / "1") as transaction:
            assert transaction.undo().failures == ()
        assert _whole(snapshot(root), across) == _whole(held, across)


def _whole(found: dict[bytes, tuple[Any, ...]], across: bool) -> dict[bytes, tuple[Any, ...]]:
    """Leave out which names share a file where a copy was kept: names that stayed do not share it with the copy."""
    return {path: held[:-1] if across and held[0] == stat.S_IFREG else held for path, held in found.items()}


@LAWS
@given(before=trees(), after=trees(), later=trees(), synchronize=st.booleans())
def test_extracting_and_rolling_back_finds_each_former_tree_again(
    before: Tree, after: Tree, later: Tree, synchronize: bool
) -> None:
    """Two revisions, extracted one after the other and rolled back: every state on the way is found again."""
    with places() as (top, work):
        depot = Depot(work)
        root = top / "target"
        root.mkdir()
        make(root, before)
        os.utime(root, ns=(3 * 10**17, 3 * 10**17))
        states = [snapshot(root)]
        for number, tree in enumerate((after, later)):
            source = top / f"source{number}"
            source.mkdir()
            make(source, tree)
            os.utime(source, ns=(10**18 + number, 10**18 + number))
            options = {"path": str(root), "from": [f"{source}/"], "synchronize": synchronize}
            depot.build(options, outside_links="keep")
            foretold = depot.extract(check=True) if not _refused(depot) else None
            assert snapshot(root) == states[-1]
            if foretold is None:
                continue
            done = depot.extract()
            assert (foretold.changed, foretold.actions) == (done.changed, done.actions)
            found, wanted = snapshot(root), snapshot(source)
            if synchronize:
                assert found.keys() == wanted.keys()
            assert {path: found[path][:-1] for path in wanted if path} == {p: v[:-1] for p, v in wanted.items() if p}
            assert set(depot.extract(force=True).actions) <= {"unchanged"}
            states.append(found)
        while len(states) > 1:
            states.pop()
            assert depot.rollback().warnings == []
            assert snapshot(root) == states[-1]


def _refused(depot: Depot) -> bool:
    """Return whether the target is refused: a link or other people's directory stands in the way."""
    try:
        depot.extract(check=True)
    except (UnsafePathError, TargetError):
        return True
    return False
