"""What a type tells of things that are no paths, and what it keeps for its commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ted.errors import TargetError, UnsafePathError
from ted.hookspecs import Item
from ted.install.log import LogReader
from ted.install.transaction import Transaction, foretell_undo


def test_items_are_counted_by_what_becomes_of_them(tmp_path: Path) -> None:
    with Transaction(tmp_path / "t" / "it", check=True, diff=True) as transaction:
        transaction.tell(Item("lib", "upgraded", "1", "2"))
        transaction.tell(Item("app", "newer", "3", "3"))
        result = transaction.commit()
    assert result.counts == {"upgraded": 1, "unchanged": 1}
    assert [change.to_dict() for change in transaction.changes] == [
        {"path": "lib", "change": "upgraded", "before": "1", "after": "2"}
    ]
    assert len(transaction.items) == 2
    assert not tmp_path.joinpath("t").exists()


def test_what_is_kept_is_there_for_commands_and_their_undo_and_goes_with_the_log(tmp_path: Path) -> None:
    transaction = Transaction(tmp_path / "t" / "it")
    out = tmp_path / "out"
    with transaction:
        text = transaction.keep("some/text", [b"kept ", b"text"])
        program = transaction.keep("program.py", [b"import sys, shutil\nshutil.copy(*sys.argv[1:])"])
        words = [sys.executable, program, text]
        transaction.run([*words, str(out)], undo=[*words, f"{out}.undone"])
        transaction.commit()
    assert out.read_text() == "kept text"
    transaction.directory.rename(tmp_path / "t" / "elsewhere")
    _, changes = foretell_undo(tmp_path / "t" / "elsewhere", diff=True)
    assert [change.path for change in changes] == [f"python kept/program.py kept/some/text {out}.undone"]
    with Transaction.open(tmp_path / "t" / "elsewhere") as moved:
        moved.undo()
        assert Path(f"{out}.undone").read_text() == "kept text"
        moved.forget()
    assert list((tmp_path / "t").iterdir()) == []


def test_a_recorded_command_names_no_place_of_this_machine(tmp_path: Path) -> None:
    with Transaction(tmp_path / "t" / "it") as transaction:
        transaction.run([sys.executable, transaction.keep("a", [b""])])
        assert transaction._plan is not None
        transaction._plan.flush()
        with LogReader(transaction.directory / "plan") as log:
            words = next(iter(log))[4][0]
        assert not any(str(tmp_path) in word or word == sys.executable for word in words)


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", ""])
def test_nothing_is_kept_outside(tmp_path: Path, name: str) -> None:
    with Transaction(tmp_path / "t" / "it") as transaction, pytest.raises((UnsafePathError, TargetError)):
        transaction.keep(name, [b"x"])


def test_what_check_mode_keeps_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with Transaction(tmp_path / "t" / "it", check=True) as transaction:
        path = Path(transaction.keep("a", [b"x"]))
        assert path.read_bytes() == b"x"
        transaction.run(["true", str(path)])
        transaction.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_command_of_another_python_is_run_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Transaction(tmp_path / "t" / "it") as transaction:
        transaction.run(["touch", str(out)])
        transaction.commit()
    assert out.exists()
