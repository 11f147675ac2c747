# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""How far check mode, diff mode and idempotence are supported."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what would change without changing it.
  diff_mode:
    description: Returns what changed (or would) when in diff mode.
  idempotent:
    description: Run twice with nothing new in between, the second run reports no change.
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what would change without changing it.
    support: full
    details: Only reads.
  diff_mode:
    description: Returns what changed (or would) when in diff mode.
    support: N/A
    details: Only reads.
  idempotent:
    description: Run twice with nothing new in between, the second run reports no change.
    support: full
    details: Only reads.
"""
