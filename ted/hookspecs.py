"""The contract with plugins (being written)."""

from __future__ import annotations

import pluggy

hookimpl = pluggy.HookimplMarker("ted")
hookspec = pluggy.HookspecMarker("ted")
