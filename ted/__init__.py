"""Tiered Electronic Distribution: signed, versioned content to servers in many places, tier by tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ted.hookspecs import hookimpl

    __version__: str

__all__ = ["__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: a command that needs neither starts a tenth of a second sooner."""
    if name == "hookimpl":
        from ted.hookspecs import hookimpl

        return hookimpl
    if name == "__version__":
        from importlib.metadata import version

        return version("ted")
    raise AttributeError(f"module 'ted' has no attribute {name!r}")
