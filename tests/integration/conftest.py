"""What the tests of the Ansible side share: a copy of the demo's inventory with ports and directories of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_tree import Tree


@pytest.fixture(scope="module")
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Yield a Distributor, a parent and two nodes (one below the parent) on which nothing is installed.

    A module may name other hosts of the demo in ``HOSTS``.
    """
    tree = Tree(tmp_path_factory.mktemp("tree"))
    tree.copy_demo(getattr(request.module, "HOSTS", ("hq", "s01", "s02", "e01")))
    tree.make_library()
    yield tree
    tree.close()


@pytest.fixture(scope="module")
def bare_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Yield a tree in a directory of its own without an inventory: the test writes one."""
    tree = Tree(tmp_path_factory.mktemp("bare"))
    tree.make_library()
    yield tree
    tree.close()
