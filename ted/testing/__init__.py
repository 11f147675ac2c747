"""What authors of distribution types test with: a bench, two machines, and the contract suite.

``pytest --ted-type NAME`` puts an installed type to the test; ``docs/testing-a-type.md`` tells every promise.

Rules:
 * What is asked of a type is what anyone can see: files, attributes, errors, processes. Never how it is written.
 * A broken promise is told in one sentence that its author understands, with the place in the docs.
 * Nothing here is imported by a ted that works, and importing this package loads none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ted.testing.bench import Bench
    from ted.testing.hostile import HostileTarget
    from ted.testing.looks import differences, snapshot
    from ted.testing.machines import Distributor, Subscriber
    from ted.testing.promise import BrokenPromiseError, Promise
    from ted.testing.sample import Sample, Variant
    from ted.testing.tree import Tree

_WHERE = {
    "Bench": "bench", "HostileTarget": "hostile", "differences": "looks", "snapshot": "looks",
    "Distributor": "machines", "Subscriber": "machines", "BrokenPromiseError": "promise", "Promise": "promise",
    "Sample": "sample", "Variant": "sample", "Tree": "tree",
}  # fmt: skip

__all__ = [
    "Bench", "BrokenPromiseError", "Distributor", "HostileTarget", "Promise", "Sample", "Subscriber", "Tree", "Variant",
    "differences", "snapshot",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: a pytest that uses none of it starts as fast as ever."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"ted.testing.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'ted.testing' has no attribute {name!r}")
