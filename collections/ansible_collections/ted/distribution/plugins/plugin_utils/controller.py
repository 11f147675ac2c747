# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Asking the C(ted) that belongs to this Ansible about a tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

from ansible.errors import AnsibleError

TIMEOUT_S = 300


def ted_of_controller():
    """Return the path of the C(ted) that belongs to this Ansible, or None."""
    beside = os.path.join(os.path.dirname(sys.executable), "ted")
    return beside if os.access(beside, os.X_OK) else shutil.which("ted")


def ask_controller(program, tree, words):
    """Return what C(ted --json) says about a tree.

    Raises:
        AnsibleError: It said nothing that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="ted-") as directory:
        path = os.path.join(directory, "topology.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(tree, stream)
        command = [program, "--json", "--inventory", path] + words
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise AnsibleError("ted %s said: %s" % (words[0], done.stderr.strip() or "nothing")) from error
