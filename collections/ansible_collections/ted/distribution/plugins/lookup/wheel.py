# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The lookup wheel: the controller's own ted, as a file that pip installs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: wheel
short_description: A wheel of the controller's own ted
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns the path of a wheel of the ted that is installed beside Ansible, so that every node gets the
    controller's version.
  - An installed ted is packed again from its own list of files, byte for byte and without a network.
  - A ted that is installed from a work tree (C(pip install -e)) is built by C(pip wheel --no-deps).
  - The wheel lies below the directory given, and is made once for each state of what it is made of.
options:
  _terms:
    description: Directory for the wheel. It is made when missing.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
---
- name: Copy the controller's ted
  ansible.builtin.copy:
    src: "{{ lookup('ted.distribution.wheel', '/tmp/wheels') }}"
    dest: /tmp/
    mode: "0644"
"""

RETURN = r"""
---
_raw:
  description: The path.
  type: list
  elements: path
"""

import base64
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

ADVICE = "Install ted beside Ansible on the controller, or set ted_package to a wheel or a requirement"
# Written by pip at installation; not part of a wheel.
OF_THE_INSTALLER = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
# Directories of a work tree that no wheel is made of, or that builds leave behind.
NOT_PACKED = ("__pycache__", "benchmarks", "build", "dist", "docs", "inventories", "run", "tests")
EPOCH = (1980, 1, 1, 0, 0, 0)


def source_of(found):
    """Return the work tree an editable installation points to, or None."""
    note = json.loads(found.read_text("direct_url.json") or "{}")
    editable = note.get("dir_info", {}).get("editable")
    return note["url"][len("file://") :] if editable and note.get("url", "").startswith("file://") else None


def build(source, directory):
    """Build a wheel of a work tree; return its path."""
    with tempfile.TemporaryDirectory(prefix="ted-wheel-", dir=directory) as scratch:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, source]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        made = [name for name in os.listdir(scratch) if name.endswith(".whl")]
        if done.returncode or not made:
            raise AnsibleError("wheel: pip could not build %s: %s. %s" % (source, done.stderr.strip(), ADVICE))
        path = os.path.join(directory, made[0])
        os.replace(os.path.join(scratch, made[0]), path)
        return path


def state_of(source):
    """Return a digest of a work tree's files (names, sizes, times): another one needs another wheel."""
    digest = hashlib.sha256()
    for top, directories, files in os.walk(source):
        directories[:] = sorted(name for name in directories if name[0] != "." and name not in NOT_PACKED)
        for name in sorted(files):
            found = os.lstat(os.path.join(top, name))
            digest.update(("%s/%s %d %d;" % (top, name, found.st_size, found.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def alone(directory):
    """Let one process at a time make a wheel in a directory."""
    with open(os.path.join(directory, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wheels_in(directory):
    """Return the wheels in a directory."""
    return [os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".whl")]


def packable(found):
    """Return the files of an installation that belong into its wheel."""
    kept = []
    for item in found.files or []:
        parts = item.parts
        own = item.name in OF_THE_INSTALLER and parts[0].endswith(".dist-info")
        if parts[0] != ".." and not own and "__pycache__" not in parts:
            kept.append(item)
    return sorted(kept, key=str)


def repack(found, directory):
    """Pack an installation into a wheel again; return its path."""
    # "3-none-any": the engine is pure Python; its tag is in its WHEEL file.
    name = "%s-%s-py3-none-any.whl" % (found.metadata["Name"], found.version)
    path = os.path.join(directory, name)
    lines = []
    handle, temporary = tempfile.mkstemp(dir=directory)
    with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        info = None
        for item in packable(found):
            with open(str(found.locate_file(item)), "rb") as content:
                data = content.read()
            archive.writestr(entry(str(item)), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append("%s,sha256=%s,%d" % (item, digest, len(data)))
            info = item.parts[0] if item.parts[0].endswith(".dist-info") else info
        record = "%s/RECORD" % info
        archive.writestr(entry(record), "\n".join(lines + ["%s,," % record]) + "\n")
    os.replace(temporary, path)
    return path


def entry(name):
    """Return an archive entry that is the same whenever it is made."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


class LookupModule(LookupBase):
    """The controller's own ted, as a file that pip installs."""

    def run(self, terms, variables=None, **kwargs):
        """Return the wheel's path."""
        self.set_options(var_options=variables, direct=kwargs)
        directory = os.path.abspath(str(terms[0]))
        os.makedirs(directory, exist_ok=True)
        try:
            found = importlib.metadata.distribution("ted")
        except importlib.metadata.PackageNotFoundError as error:
            raise AnsibleError(
                "wheel: there is no ted beside this Ansible (%s). %s" % (sys.executable, ADVICE)
            ) from error
        source = source_of(found)
        state = (
            state_of(source) if source else hashlib.sha256((found.read_text("RECORD") or "").encode()).hexdigest()[:16]
        )
        directory = os.path.join(directory, state)
        os.makedirs(directory, exist_ok=True)
        with alone(directory):
            made = wheels_in(directory) or [build(source, directory) if source else repack(found, directory)]
        return made[:1]
