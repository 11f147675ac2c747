"""What happens on arrival: variables, one transaction for every type, extract, roll back, verify."""

from __future__ import annotations

from ted.install.transaction import (
    Attributes,
    CommitResult,
    Recovered,
    Transaction,
    UndoResult,
    recover,
)
from ted.install.variables import Variables

__all__ = [
    "Attributes",
    "CommitResult",
    "Recovered",
    "Transaction",
    "UndoResult",
    "Variables",
    "recover",
]
