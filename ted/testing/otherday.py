"""Build a sample once more on another day, on another machine as far as a process can tell: ``python -m`` this.

Reads what to build as JSON from standard input, prints the content tree as JSON. The clock is 400 days ahead, the host
has another name, directories are listed backwards, the umask is another one, and sets have another order (by
``PYTHONHASHSEED``).
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_AHEAD_S = 400 * 86400 + 11 * 3600 + 123.456


def pretend(number: int) -> None:
    """Make this process believe that it is another day and another machine."""
    _shift_clock(_AHEAD_S * number)
    name = f"elsewhere{number}.invalid"
    os.umask(0o077 if number % 2 else 0o002)
    random.seed(number)
    _replace(socket, "gethostname", lambda: name)
    _replace(socket, "getfqdn", lambda *_name: name)
    uname = os.uname()
    other = os.uname_result((uname.sysname, name, uname.release, uname.version, uname.machine))
    _replace(os, "uname", lambda: other)
    listdir = os.listdir
    _replace(os, "listdir", lambda *where: sorted(listdir(*where), reverse=bool(number % 2)))
    scandir = os.scandir
    _replace(os, "scandir", lambda *where: _Listing(scandir(*where), backwards=bool(number % 2)))


class _Listing:
    """What ``os.scandir`` gives, in an order of our own."""

    def __init__(self, found: Any, *, backwards: bool) -> None:
        with found:
            self._left = iter(sorted(found, key=lambda entry: entry.name, reverse=backwards))

    def __iter__(self) -> _Listing:
        return self

    def __next__(self) -> Any:
        return next(self._left)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """As the real one's."""


def _replace(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)


def _shift_clock(by_s: float) -> None:
    now, now_ns, local, utc, text, form = (
        time.time, time.time_ns, time.localtime, time.gmtime, time.ctime, time.strftime,
    )  # fmt: skip
    _replace(time, "time", lambda: now() + by_s)
    _replace(time, "time_ns", lambda: now_ns() + int(by_s * 10**9))
    _replace(time, "localtime", lambda at=None: local(now() + by_s if at is None else at))
    _replace(time, "gmtime", lambda at=None: utc(now() + by_s if at is None else at))
    _replace(time, "ctime", lambda at=None: text(now() + by_s if at is None else at))
    _replace(time, "strftime", lambda shape, at=None: form(shape, time.localtime() if at is None else at))
    ahead = datetime.timedelta(seconds=by_s)
    moment, day = datetime.datetime, datetime.date
    real_now, real_today = moment.now, moment.today
    in_class(moment, "now", lambda _cls, tz=None: real_now(tz) + ahead)
    in_class(moment, "utcnow", lambda _cls: real_now(datetime.UTC).replace(tzinfo=None) + ahead)
    in_class(moment, "today", lambda _cls: real_today() + ahead)
    in_class(day, "today", lambda _cls: (real_now() + ahead).date())


def in_class(kind: type, name: str, function: Callable[..., Any]) -> None:
    """Replace a class method of a class that C code made, whoever has imported the class already."""
    for held in gc.get_referents(kind.__dict__):
        if isinstance(held, dict):
            held[name] = classmethod(function)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def _build(asked: dict[str, Any]) -> dict[str, Any]:
    from ted.errors import TedError
    from ted.testing.children import raised_by
    from ted.testing.machines import Distributor
    from ted.testing.promise import told
    from ted.testing.promises.building import _shape

    try:
        distributor = Distributor(Path(asked["root"]), asked["type"])
        built = distributor.build(asked["options"])
    except (TedError, Exception) as error:  # noqa: BLE001 -- told to the parent
        return {"error": told(raised_by(error))}
    return {"tree": _shape(distributor.entries(built.revision))}


def main() -> None:
    """Read, build, print."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    pretend(asked["number"])
    sys.stdout.write("\n" + json.dumps(_build(asked)) + "\n")


if __name__ == "__main__":
    main()
