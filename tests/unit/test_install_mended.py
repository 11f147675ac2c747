"""What an installer must never do to other people's files, whatever happens around it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from install_depot import Depot

from ted.errors import TargetError
from ted.install import Transaction
from ted.install.transaction import Policy

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    root = tmp_path / "target"
    root.mkdir()
    return root


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Transaction]:
    def begin(**options: Any) -> Transaction:
        options.setdefault("policy", Policy(retries=0))
        return Transaction(tmp_path / "var" / "transactions" / Transaction.identity(), **options)

    return begin


@contextmanager
def mounted(path: Path, *how: str) -> Iterator[None]:
    subprocess.run(["mount", *how, str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def write(transaction: Transaction, root: Path, path: str, text: str) -> None:
    transaction.write(str(root), path.encode(), [text.encode()], size=len(text.encode()))


def make(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def test_synchronize_spares_what_an_anchored_exclude_left_out_of_a_named_directory(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    make(tmp_path / "pos" / "var", junk="built")
    make(tmp_path / "pos", program="x")
    make(target / "pos" / "var", customers="precious")
    depot.build({"from": [str(tmp_path / "pos")], "exclude": ["/var"], "synchronize": True})
    depot.extract()
    assert (target / "pos" / "program").exists()
    assert (target / "pos" / "var" / "customers").read_text() == "precious"


@needs_root
@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_what_is_bound_into_a_directory_is_never_deleted_with_it(
    begin: Callable[..., Transaction], tmp_path: Path, target: Path, on_error: Any
) -> None:
    outside = make(tmp_path / "outside", customers="precious")
    make(target / "extra" / "bound")
    make(target / "extra", aaa="first")
    with (
        mounted(target / "extra" / "bound", "--bind", str(outside)),
        begin(policy=Policy(on_error=on_error, retries=0, on_failure="leave")) as transaction,
    ):
        transaction.delete(str(target), b"extra")
        if on_error == "fail":
            with pytest.raises(TargetError, match="mounted"):
                transaction.commit()
        else:
            assert "mounted" in transaction.commit().failures[0].message
        assert (outside / "customers").read_text() == "precious"
        assert (target / "extra" / "aaa").exists()
