"""What every benchmark shares: rounds, costs, the document. That the figures are good is for `make bench` to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from signal import SIGPIPE, SIGXFSZ

import pytest

from benchmarks import deltas, fetch, update
from benchmarks.__main__ import tables
from benchmarks.fetching import counted, nginx
from benchmarks.measure import Contender, Options, Sample, interleaved, run_apart, run_command, run_function
from benchmarks.report import Report, write


def test_every_round_begins_with_another_contender_and_a_slow_one_may_have_fewer_rounds() -> None:
    order: list[str] = []

    def run(name: str) -> Sample:
        order.append(name)
        return Sample(len(order), 0)

    found = interleaved([Contender("a", lambda: run("a")), Contender("b", lambda: run("b"), rounds=1)], 3)
    assert order == ["a", "b", "a", "a"]
    assert found.median("a", "wall_s") == 3
    assert found.worst("a", "wall_s") == 4
    assert found.ratio("a", "b", "wall_s") == 1.5


def test_a_program_that_fails_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        run_command("echo no such luck; exit 3")


def test_the_memory_of_a_program_is_its_own_and_not_that_of_this_process() -> None:
    held = b"x" * 64_000_000
    small, large = run_command(["true"]), run_command([sys.executable, "-c", "b'x' * 96_000_000"])
    assert small.peak_bytes < 16_000_000
    assert 96_000_000 < large.peak_bytes < 140_000_000
    assert held


def test_a_program_is_started_as_by_a_shell() -> None:
    """What Python ignores is not ignored, no file is open but the three, and what cannot be started is told."""
    run_command("test $(ls /proc/self/fd | wc -l) -eq 4")  # the directory is the fourth
    words = ["sh", "-c", "grep SigIgn /proc/self/status; sleep 0.1; kill -9 $$"]
    code, said, sample = run_apart(words, stdout=subprocess.PIPE)
    ignored = int(said.split()[1], 16)
    assert (code, [number for number in (SIGPIPE, SIGXFSZ) if ignored >> number - 1 & 1]) == (-9, [])
    assert 0.1 < sample.wall_s < 5
    with pytest.raises(RuntimeError, match="no-such-program"):
        run_command(["no-such-program"])


def test_the_memory_of_a_function_is_its_own_and_not_that_of_this_process() -> None:
    held = b"x" * 64_000_000
    small, large = run_function(int), run_function(lambda: bytearray(96_000_000))
    assert large.peak_bytes - small.peak_bytes > 60_000_000
    assert held


def test_a_table_takes_the_place_of_its_former_self_in_the_document(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    report = Report("one", "The one", ("a", "b"), [(1, "x")], ["note"])
    document.write_text("# Benchmarks\n\n<!-- one:begin -->\nold\n<!-- one:end -->\n\nafter\n")
    write(report, report.markdown("command", "0.1, 0.2"), document)
    text = document.read_text()
    assert "old" not in text
    assert "| 1 | x |" in text
    assert text.endswith("<!-- one:end -->\n\nafter\n")


def test_the_document_has_a_place_for_every_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert [name for name in tables() if f"<!-- {name}:begin -->" not in text] == []


def test_what_is_fetched_is_counted_by_the_server_with_headers(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(b"x" * 100_000)
    with nginx(tmp_path) as web:
        url = f"http://127.0.0.1:{web.port}/file"
        for count in (1, 2):
            command = ["curl", "-sf", "-o", str(tmp_path / "file"), *[url] * count]
            sample = counted(tmp_path, lambda command=command: run_command(command))
            assert 20 * count < sample.more["asked"] < 200 * count
            assert 100_100 * count < sample.more["answered"] < 100_500 * count


def test_an_update_that_gives_something_else_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "new.tar").write_bytes(b"new")
    with nginx(tmp_path):
        deltas._fetched(tmp_path, "true", "true", "printf new > back")()
        with pytest.raises(RuntimeError, match="differ"):
            deltas._fetched(tmp_path, "true", "true", "printf old > back")()


def test_every_peer_of_an_update_gives_the_same_file() -> None:
    rows = update.table(Options(rounds=1, quick=True)).rows
    assert [row[1] for row in rows] == [
        update.SMALL, update.FAST, deltas.ZSTD_9, deltas.XDELTA, deltas.RSYNC, deltas.RSYNC_DAEMON, deltas.CASYNC,
        deltas.ZCHUNK, deltas.ZSYNC, deltas.ZSTD_19,
    ]  # fmt: skip
    whole = 1_000 * 700
    assert [row[1] for row in rows if not 0 < int(str(row[2]).replace(",", "")) < whole] == []


def test_every_peer_that_fetches_gets_all_of_it_and_again_gets_less() -> None:
    rows = fetch.table(Options(rounds=1, quick=True)).rows
    answered = {(row[0], row[1]): float(str(row[6])) for row in rows}
    assert len(answered) == 2 * 3 * 2
    for (what, name), megabytes in answered.items():
        if not name.endswith("again"):
            assert answered[what, f"{name}, again"] < megabytes / 10, name
