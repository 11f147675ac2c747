"""The promises of every type, by what they are about; importing this package declares them all, in order."""

from __future__ import annotations

from ted.testing.promise import PROMISES
from ted.testing.promises import building, costing, describing, ending, extracting, hiding

__all__ = ["PROMISES", "building", "costing", "describing", "ending", "extracting", "hiding"]
