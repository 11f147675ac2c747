"""The promises of every type, by what they are about; importing this package declares them all."""

from __future__ import annotations

from ted.testing.promise import PROMISES
from ted.testing.promises import building, costing, describing, ending, extracting, hiding

__all__ = ["PROMISES", "building", "costing", "describing", "ending", "extracting", "hiding"]

for _name in (
    "described", "options", "deterministic", "notices", "sources", "installs", "faithful", "idempotent",
    "transactional", "checked", "drift", "confined", "rollback", "killable", "cancellable", "errors", "secrets",
    "memory", "travels",
):  # fmt: skip
    PROMISES[_name] = PROMISES.pop(_name)  # in the order in which an author would mend them
