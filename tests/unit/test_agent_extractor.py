"""The process that the agent's extractions are forked from: what they say, what they share, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ted.agent.extractor import NAME

HEAD = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from ted.agent.extractor import Extractor

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a script runs the tests in the background

def run(load, *commands):
    global extractor
    async def all_of_them():
        return await asyncio.gather(*(extractor.run(list(words)) for words in commands))
    extractor = Extractor(load)
    extractor.start()
    return [each.decode() for each in asyncio.run(all_of_them())]
"""


def said_by(body: str, **environment: str) -> Any:
    """Return what a program says that uses the extractor in a process of its own."""
    program = HEAD + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True,
                          text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_command_runs_in_a_process_forked_for_it_and_what_it_prints_is_returned() -> None:
    told = said_by("""
        count = 0
        def main(words):
            global count
            count += 1
            parent = Path(f"/proc/{os.getppid()}/comm").read_text().strip()
            print(json.dumps([words, count, os.getpid(), parent]))
            sys.exit(3)
        found = [json.loads(each) for each in run(lambda: main, ["a"], ["b", "c"], ["ü"])]
        print(json.dumps([os.getpid(), *found]))
    """)
    me, *found = told
    assert [words for words, *_ in found] == [["a"], ["b", "c"], ["ü"]]
    assert [count for _, count, *_ in found] == [1, 1, 1], "none sees what another left"
    assert len({me, *(pid for *_, pid, _ in found)}) == 4
    assert {parent for *_, parent in found} == {NAME}


def test_much_at_once_is_told_whole() -> None:
    told = said_by("""
        def main(words):
            print(words[0] * 300_000)
        print(json.dumps([each == str(n % 10) * 300_000 + "\\n" for n, each in enumerate(
            run(lambda: main, *([str(n % 10)] for n in range(60))))]))
    """)
    assert told == [True] * 60


def test_what_is_loaded_is_loaded_once_and_not_in_the_agent() -> None:
    told = said_by("""
        def load():
            global loaded
            loaded = os.getpid()
            return lambda words: print(loaded == os.getppid())
        print(json.dumps([*run(load, ["a"], ["b"]), "loaded" in globals()]))
    """)
    assert told == ["True\n", "True\n", False]


def test_a_command_has_the_signals_and_files_of_one_that_was_started_anew() -> None:
    told = said_by(
        """
        def main(words):
            null = os.stat("/dev/null").st_rdev
            print(json.dumps({
                "chld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
                "int": signal.getsignal(signal.SIGINT) == signal.default_int_handler,
                "null": [os.fstat(fd).st_rdev == null for fd in (0, 2)],
                "sockets": [str(each) for each in Path("/proc/self/fd").iterdir() if each.is_socket()],
                "notify": os.environ.get("NOTIFY_SOCKET"),
            }))
        print(run(lambda: main, ["a"])[0].strip())
        """,
        NOTIFY_SOCKET="/run/nobody",
    )
    assert told == {"chld": True, "int": True, "null": [True, True], "sockets": [], "notify": None}


def test_a_command_that_is_killed_or_fails_says_nothing_and_the_next_one_runs() -> None:
    told = said_by("""
        def main(words):
            if words == ["killed"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if words == ["fails"]:
                raise RuntimeError("a bug")
            print("well")
        print(json.dumps(run(lambda: main, ["killed"], ["fails"], ["other"])))
    """)
    assert told == ["", "", "well\n"]


def test_nobody_is_left_unburied() -> None:
    told = said_by("""
        def main(words):
            print(os.getppid())
        above = int(run(lambda: main, ["a"], ["b"])[0])
        children = Path(f"/proc/{above}/task/{above}/children")
        end_s = time.monotonic() + 20
        while children.read_text() and time.monotonic() < end_s:
            time.sleep(0.02)
        print(json.dumps([Path(f"/proc/{above}/stat").read_text().rpartition(")")[2].split()[0], children.read_text()]))
    """)
    assert told[0] in {"S", "R"}, "it waits for the next one"
    assert told[1] == ""


def test_where_it_was_killed_a_new_interpreter_runs_the_command() -> None:
    told = said_by("""
        async def twice():
            extractor = Extractor(lambda: lambda words: print(os.getppid()))
            extractor.start()
            os.kill(int(await extractor.run([])), signal.SIGKILL)
            time.sleep(0.5)
            return [(await extractor.run(["--version"])).decode() for _ in range(2)]
        print(json.dumps(asyncio.run(twice())))
    """)
    assert [each.startswith("ted, version") for each in told] == [True, True]


def test_what_was_asked_of_it_before_it_was_killed_is_done_by_a_new_interpreter() -> None:
    told = said_by("""
        async def asked():
            extractor = Extractor(lambda: lambda words: print(os.getppid()))
            extractor.start()
            above = int(await extractor.run([]))
            os.kill(above, signal.SIGSTOP)
            waiting = [asyncio.create_task(extractor.run(["--version"])) for _ in range(3)]
            await asyncio.sleep(0.2)
            os.kill(above, signal.SIGKILL)
            return [(await each).decode() for each in waiting]
        print(json.dumps(asyncio.run(asked())))
    """)
    assert [each.startswith("ted, version") for each in told] == [True] * 3


def test_after_a_package_was_installed_a_new_interpreter_runs_the_command(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    told = said_by(
        f"""
        async def before_and_after():
            extractor = Extractor(lambda: lambda words: print("forked"))
            extractor.start()
            before = await extractor.run(["--version"])
            Path({str(packages)!r}, "another.pth").touch()
            return [before.decode(), (await extractor.run(["--version"])).decode()]
        print(json.dumps(asyncio.run(before_and_after())))
        """,
        PYTHONPATH=os.pathsep.join([str(packages), *sys.path]),
    )
    assert told[0] == "forked\n"
    assert told[1].startswith("ted, version")


def test_a_command_ends_as_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    said_by(f"""
        import atexit, threading
        atexit.register(Path({str(tmp_path / "agents")!r}).touch)
        def main(words):
            atexit.register(Path({str(tmp_path / "own")!r}).touch)
            threading.Thread(target=lambda: (time.sleep(0.3), Path({str(tmp_path / "thread")!r}).touch())).start()
        run(lambda: main, ["a"])
        print(json.dumps(Path({str(tmp_path / "agents")!r}).exists()))
    """)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agents", "own", "thread"]


def test_a_bug_is_told_in_the_log_of_the_agent() -> None:
    program = HEAD + textwrap.dedent("""
        def main(words):
            raise RuntimeError("a bug")
        print(run(lambda: main, ["a"]))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['']\n"
    assert "RuntimeError: a bug" in done.stderr


def test_an_agent_without_standard_output_has_one_all_the_same() -> None:
    program = HEAD + "print(run(lambda: lambda words: print('well'), ['a']), file=sys.stderr)"
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], capture_output=True,
                          text=True, check=True, timeout=60)  # fmt: skip
    assert done.stderr.splitlines()[-1] == "['well\\n']"


def test_the_agent_s_own_command_line_has_what_extraction_needs() -> None:
    told = said_by("""
        import ted.cli.agent_cmd
        main = ted.cli.agent_cmd._ready_to_extract()
        print(json.dumps([main is ted.cli.main.main, *sys.modules]))
    """)
    assert told[0]
    assert {"ted.install.extract", "ted_plugins.file"} <= {*told}


def test_it_ends_with_the_process_that_started_it_and_what_is_under_way_goes_on(tmp_path: Path) -> None:
    above = said_by(f"""
        done = Path({str(tmp_path / "done")!r})
        def main(words):
            print(os.getppid(), flush=True)
            os.dup2(2, 1)
            time.sleep(1)
            done.touch()
        print(run(lambda: main, ["a"])[0].strip())
        sys.stdout.flush()
        os._exit(0)
    """)
    deadline_s = time.monotonic() + 30
    while _is_running(above) or not (tmp_path / "done").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == NAME
    return False
