"""The table of sixty hosts, small: every host has the very bytes, each line carried one copy."""

from __future__ import annotations

import pytest

from benchmarks.fleet import build, by_ted, by_two_tier_http, by_two_tier_rsync, by_two_tier_rsyncd, measured
from benchmarks.rig import directory

pytestmark = pytest.mark.lab
SIZE = 1 << 20


def test_who_goes_in_two_tiers_crosses_each_line_once() -> None:
    with directory() as root:
        field = build(root, 2, 3, 50, SIZE, with_agents=False)
        try:
            for distribute in (by_two_tier_rsync, by_two_tier_rsyncd, by_two_tier_http):
                sample = measured(field, distribute, 50)
                assert SIZE < sample.more["line_bytes"] < 1.2 * SIZE, distribute
                for host in field.hosts:
                    (field.root_of(host) / "srv" / "big").unlink()
        finally:
            field.fleet.close()
            field.lab.call("down")


def test_ted_crosses_each_line_once() -> None:
    with directory() as root:
        field = build(root, 2, 3, 50, SIZE, with_agents=True)
        try:
            assert SIZE < measured(field, by_ted, 50).more["line_bytes"] < 1.2 * SIZE
        finally:
            field.fleet.close()
            field.lab.call("down")
