# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Options of the filters that read a whole inventory."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  _input:
    description: Ansible's C(hostvars).
    type: raw
    required: true
  groups:
    description: Ansible's C(groups).
    type: dict
    required: true
"""

    # Which distributions are meant.
    NARROWED = r"""
options:
  distribution:
    description: Only for this distribution.
    type: str
  channel:
    description: Only for this channel.
    type: str
"""
