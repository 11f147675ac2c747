"""Running the programs of a package manager: in plain English, without a shell, never asking anybody."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from ted.errors import TargetError

_SAID_BYTES = 3000
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOISE = ("RPM should not be used directly", "However assuming you know")
LOOKING_S = 600.0


def run(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> str:  # fmt: skip
    """Run a program and return what it printed.

    What gets descriptors changes the machine, and has the time that the distribution gives it; whatever only looks has
    ten minutes.

    Raises:
        TargetError: It cannot be started, failed, or took too long; what it said is in the message.
    """
    try:
        done = subprocess.run(
            list(words), stdin=subprocess.DEVNULL, capture_output=True, cwd="/", pass_fds=pass_fds,
            env=environment() | dict(env or {}), timeout=None if pass_fds else LOOKING_S, check=False,
        )  # fmt: skip
    except OSError as error:
        raise TargetError(f"{words[0]}: cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{words[0]}: took longer than {LOOKING_S:g} s") from error
    out, told = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        raise TargetError(f"{words[0]}: {said(told + out) or f'exit code {done.returncode}'}")
    return out


def environment() -> dict[str, str]:
    """Return the environment every program gets."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": _PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def found(program: str) -> bool:
    """Return whether there is a program of that name."""
    return any(os.access(f"{directory}/{program}", os.X_OK) for directory in _PATH.split(":"))


def said(text: str) -> str:
    """Return what a program said in one line, the last 3000 bytes of it."""
    lines = [line.strip() for line in text.splitlines() if not any(noise in line for noise in _NOISE)]
    return " ".join(line for line in lines if line)[-_SAID_BYTES:]
