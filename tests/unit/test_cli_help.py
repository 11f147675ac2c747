"""What the command line says to somebody who does not know it yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted.cli.main import COMMANDS, main


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command line; return its exit code and all that it printed."""
    try:
        main(list(words))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("words", [(), *[(name,) for name in COMMANDS], ("keys", "rotate"), ("trust", "import")])
def test_every_command_answers_both_ways_of_asking(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, text = said(capsys, *words, "-h")
    assert (code, text) == said(capsys, *words, "--help")
    assert code == 0
    assert "-h, --help" in text
    assert "..." not in text.partition("Commands:")[2], "no sentence of a list is cut off"


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "statsu")
    assert (code, "Did you mean status?" in text) == (2, True)
    code, text = said(capsys, "xyzzy")
    assert (code, "mean" in text) == (2, False)


def test_the_configuration_directory_may_be_set_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TED_CONFIG", str(tmp_path))
    assert said(capsys, "trust", "list") == (
        0, "no Distributor is trusted here yet: `ted trust import`, or playbooks/install.yml\n"
    )  # fmt: skip
    code, text = said(capsys, "status")
    assert (code, f"{tmp_path}/node.yml" in text, "TED_CONFIG" in text) == (10, True, True)
