"""Run a distribution's own acceptance tests: pytest-testinfra files that travelled with it.

Rules:
 * They run on this machine after extraction, in a process of its own, with a time limit for all of them together.
 * Nothing of this machine's pytest settings or plugins takes part, and nothing is written beside the tests.
 * Tests learn where things went from the environment: ``TED_DISTRIBUTION``, ``TED_REVISION`` and, for each place,
   ``TED_TARGET_<place>`` (what is no letter or digit becomes ``_``).
 * A test that fails, none at all, or a time limit that is passed: ``AcceptanceError``, and the extraction is undone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ted.content.entry import Kind
from ted.content.revision import RevisionReader
from ted.errors import AcceptanceError

PREFIX = b"verify"
TIME_LIMIT_S = 300.0
_OUTPUT_CHARACTERS = 4000
_NO_TESTS = 5


def has_tests(reader: RevisionReader) -> bool:
    """Return whether the revision carries acceptance tests."""
    return any(entry.kind is Kind.FILE for entry in reader.entries(PREFIX))


def run(
    reader: RevisionReader, *, scratch: Path, places: Mapping[str, str], time_limit_s: float = TIME_LIMIT_S
) -> None:
    """Run the tests of a revision.

    Args:
        reader: The revision.
        scratch: Directory in which a temporary one is made.
        places: Place in the content tree -> directory it was extracted to.
        time_limit_s: For all tests together.

    Raises:
        AcceptanceError: A test failed, there is none, or time ran out.
    """
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="acceptance-", dir=scratch) as name:
        directory = Path(name)
        settings = directory / "pytest.ini"
        _write(reader, directory)
        settings.write_text("[pytest]\npython_files = *.py\n")  # whatever they are called
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "testinfra.plugin",
            "--hosts=local://", "--import-mode=importlib", f"--rootdir={directory}", "-c", str(settings),
            str(directory),
        ]  # fmt: skip
        _run(command, directory, _environment(reader, places), reader, time_limit_s)


def _write(reader: RevisionReader, directory: Path) -> None:
    for entry in reader.entries(PREFIX):
        inside = os.fsdecode(entry.path[len(PREFIX) + 1 :])
        if entry.kind is Kind.DIRECTORY:
            (directory / inside).mkdir(exist_ok=True)
        elif entry.kind is Kind.FILE:
            with open(directory / inside, "xb") as file:
                for chunk in reader.chunks(entry):
                    if isinstance(chunk, bytes):
                        file.write(chunk)
                    else:
                        file.seek(chunk.length, os.SEEK_CUR)
                file.truncate()  # to where it is, which may lie behind a hole


def _environment(reader: RevisionReader, places: Mapping[str, str]) -> dict[str, str]:
    targets = {f"TED_TARGET_{re.sub(r'[^A-Za-z0-9]', '_', place)}": root for place, root in places.items()}
    without = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TED_"))}
    return without | targets | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "TED_DISTRIBUTION": reader.record.distribution, "TED_REVISION": reader.record.revision,
    }  # fmt: skip


def _run(
    command: list[str], directory: Path, environment: dict[str, str], reader: RevisionReader, time_limit_s: float
) -> None:
    what = f"{reader.record.distribution} {reader.record.revision}"
    process = subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        raise AcceptanceError(f"{what}: its acceptance tests took longer than {time_limit_s:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return
    if process.returncode == _NO_TESTS:
        raise AcceptanceError(
            f"{what}: its `verify` files hold no test", hint="a test is a function named test_...; see pytest-testinfra"
        )
    text = output.decode("utf-8", "replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)$", text, re.MULTILINE)
    summary = "; ".join(line.replace(f"{directory}/", "") for line in failed[:5]) or text.strip()[-_OUTPUT_CHARACTERS:]
    raise AcceptanceError(
        f"{what}: its acceptance tests failed: {summary}",
        hint="what was there before is back, unless on_failure is `leave`; mend the distribution or its tests",
    )
