"""A SQLite database and a later state of it: the same bytes every time with one version of SQLite."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

_FAST = "pragma journal_mode=off; pragma synchronous=off;"
_INSERT = "insert into t(k, body, blob, v) values(?, ?, ?, ?)"
_Row = tuple[str, str, bytes, float]


def make(old: Path, new: Path, rows: int) -> None:
    """Make ``old`` with so many rows (700 bytes each), and ``new``: scattered edits, deletions, 2 % appended."""
    chance = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(6000)]

    def several(count: int) -> Iterator[_Row]:
        for _ in range(count):
            body = " ".join(chance.choices(known, k=chance.randint(20, 90)))
            blob = chance.randbytes(chance.randint(0, 300))
            yield f"{chance.getrandbits(64):016x}", body, blob, chance.random() * 1e6

    with closing(sqlite3.connect(old)) as db, db:
        db.executescript(f"pragma page_size=4096; {_FAST}"
                         "create table t(id integer primary key, k text, body text, blob blob, v real);"
                         "create index tk on t(k);")  # fmt: skip
        db.executemany(_INSERT, several(rows))
    shutil.copyfile(old, new)
    with closing(sqlite3.connect(new)) as db, db:
        db.executescript(_FAST)
        for number in chance.sample(range(1, rows), rows // 213):
            db.execute("update t set v=? where id=?", (chance.random(), number))
        for number, row in zip(chance.sample(range(1, rows), rows // 800), several(rows // 800), strict=True):
            db.execute("update t set body=?, blob=? where id=?", (row[1], row[2], number))
        db.executemany("delete from t where id=?", ((n,) for n in chance.sample(range(1, rows), rows // 1280)))
        db.executemany(_INSERT, several(rows // 53))
