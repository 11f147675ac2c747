"""Tiered Electronic Distribution: signed, versioned content to servers in many places, tier by tier."""

from __future__ import annotations

from importlib.metadata import version

from ted.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = version("ted")
