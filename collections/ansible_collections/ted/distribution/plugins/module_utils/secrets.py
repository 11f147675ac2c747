# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Which settings are secrets, where nobody knows their meaning: by their names."""

from __future__ import annotations

import re

SECRET = re.compile(
    r"(?i)passw|pwd|secret|token|key|credential|(^|[^a-z])(pin|headers?|query|auth|cookies?)([^a-z]|$)"
)
MASK = "**********"


def without_secrets(value, hide=False):
    """Return parsed settings with each leaf masked that a secret's name leads to."""
    if isinstance(value, dict):
        return {key: without_secrets(item, hide or bool(SECRET.search(str(key)))) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item, hide) for item in value]
    return MASK if hide and isinstance(value, str) else value
