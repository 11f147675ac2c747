"""``python -m benchmarks [TABLE ...]``: take tables and write them into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import compileall
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import benchmarks
import ted
import ted_plugins
from benchmarks.measure import Options
from benchmarks.report import Report, load_average, write


def tables() -> dict[str, Callable[[Options], Report]]:
    """Return every module of this package that makes a table."""
    found = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name.startswith("_"):
            continue
        table = getattr(importlib.import_module(f"benchmarks.{module.name}"), "table", None)
        if table is not None:
            found[module.name] = table
    return found


def compile_ted() -> None:
    """Compile ted's modules, as its installation does: else each of a hundred processes would do it for itself."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""
    for package in (ted, ted_plugins):
        compileall.compile_dir(Path(package.__path__[0]), quiet=1)


def main() -> None:
    compile_ted()
    known = tables()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure ted beside its peers.")
    parser.add_argument("table", nargs="*", help=f"which (default: all): {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="small inputs: does it work at all?")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    if unknown := set(asked.table) - set(known):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    for name in asked.table or known:
        print(f"{name}:", file=sys.stderr, flush=True)
        before = load_average()
        report = known[name](Options(rounds=asked.rounds, quick=asked.quick))
        words = ["python -m benchmarks", name]
        words += [f"--rounds {asked.rounds}"] * (asked.rounds != 5) + ["--quick"] * asked.quick
        text = report.markdown(" ".join(words), f"{before}, {load_average()}")
        print(text, flush=True)
        if not asked.dry:
            write(report, text)


if __name__ == "__main__":
    main()
