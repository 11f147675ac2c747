"""``%NAME%``: what is replaced by what, and what is refused."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from ted.errors import VariableError
from ted.install.platforms import facts, mismatch
from ted.install.variables import PREDEFINED, Variables, predefined

NODE = predefined(
    node="s01", config_directory=Path("/etc/ted"), working_directory=Path("/var/lib/ted"), address="192.0.2.1",
    realm="example",
)  # fmt: skip


@pytest.fixture
def variables() -> Variables:
    own = {"Shop": "7", "DATA": "%DEST_VOLUME%srv/%shop%", "dest_volume": "/", "Loop": "a%pool%", "pool": "%LOOP%"}
    return Variables(NODE, own, environment={"HOME": "/root", "Odd": "%x%"})


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("/plain", "/plain"),
        ("%SHOP%", "7"),
        ("/a/%shop%/%Shop%", "/a/7/7"),
        ("%DATA%/x", "/srv/7/x"),
        ("{{ SHOP }}/{{shop}}", "7/7"),
        ("100%%", "100%"),
        ("%%SHOP%%", "%SHOP%"),
        ("%%%SHOP%", "%7"),
        ("%ENV:HOME%", "/root"),
        ("%ENV:Odd%", "%x%"),
        ("%SERVER_NAME%.%TREE_NAME% %SERVER_DN%", "s01.example s01.example"),
        ("%IP_ADDRESS% %WORKING_PATH% %CONFIG_PATH%", "192.0.2.1 /var/lib/ted /etc/ted"),
    ],
)
def test_a_variable_is_replaced_whatever_its_case(variables: Variables, text: str, expanded: str) -> None:
    assert variables.expand(text) == expanded


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("/a/%NOPE%/b", "%NOPE%"),
        ("{{ nope }}", "%nope%"),
        ("{{ shop | upper }}", "shop | upper"),
        ("{{ 7 * 7 }}", "7 * 7"),
        ("50% off", "percent sign"),
        ("%LOOP%", "LOOP -> POOL -> LOOP"),
        ("%ENV:home%", "%ENV:home%"),
        ("%HOME%", "%HOME%"),
    ],
)
def test_what_cannot_be_replaced_is_an_error_that_names_it(variables: Variables, text: str, named: str) -> None:
    with pytest.raises(VariableError) as caught:
        variables.expand(text)
    assert named in caught.value.message
    assert caught.value.hint


def test_the_subscribers_own_value_wins_over_the_predefined_one() -> None:
    assert Variables(NODE, {"server_name": "mine"}).expand("%SERVER_NAME%") == "mine"


def test_a_value_that_grows_without_end_is_refused() -> None:
    doubling = {f"V{n}": f"%V{n + 1}%%V{n + 1}%" for n in range(30)} | {"V30": "x"}
    with pytest.raises(VariableError):
        Variables({}, doubling).expand("%V0%")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(VariableError, match="a b"):
        Variables({}, {"a b": "x"})


def test_every_predefined_variable_is_described() -> None:
    assert NODE.keys() == PREDEFINED.keys()


def test_a_percent_sign_in_a_path_of_this_node_is_taken_as_it_is() -> None:
    odd = predefined(node="n", config_directory=Path("/a%b%"), working_directory=Path("/w"), address="192.0.2.1")
    assert Variables(odd).expand("%CONFIG_PATH%") == "/a%b%"


MACHINE = {
    "os_family": "Debian",
    "distribution": "Debian",
    "version": "12",
    "architecture": "x86_64",
    "hostname": "s01",
}


@pytest.mark.parametrize(
    ("platforms", "fits"),
    [
        ([], True),
        ([{"os_family": "debian"}], True),
        ([{"os_family": "Debian", "version": "1?"}], True),
        ([{"os_family": "Debian", "version": "13"}], False),
        ([{"os_family": "RedHat"}, {"hostname": "s*"}], True),
        ([{"architecture": ["aarch64", "x86_64"]}], True),
        ([{"shoe_size": "42"}], False),
        ([{"version": 12}], True),
    ],
)
def test_a_platform_fits_when_every_fact_of_one_mapping_does(platforms: list[dict[str, object]], fits: bool) -> None:
    assert (mismatch(platforms, MACHINE) is None) == fits


def test_a_mismatch_says_what_was_wanted_and_what_this_machine_has() -> None:
    text = mismatch([{"os_family": "RedHat"}], MACHINE)
    assert text == "only for os_family RedHat; this machine has os_family Debian"


def test_this_machine_has_every_fact() -> None:
    assert facts().keys() == MACHINE.keys()
    assert all(facts().values())


def test_the_name_of_this_machine_is_the_one_it_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    platform.node()  # remembers the name
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "pos-17", "6.1", "#1", "aarch64")))
    told = facts.__wrapped__()
    assert (told["hostname"], told["architecture"]) == ("pos-17", "aarch64")
