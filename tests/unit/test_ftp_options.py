"""Options of the FTP type: what is taken, what is refused, and that a password stays where it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from file_servers import PASSWORD

from ted import plugins
from ted.errors import BuildError, OptionsError
from ted_plugins.sources.ftp import FtpLogin
from ted_plugins.sources.secrets import reveal
from ted_plugins.sources.sftp import SftpLogin, _Askpass, quoted


def options(server: dict[str, Any] | None = None, **target: Any) -> dict[str, Any]:
    named = {"url": "ftp://ftp.example.com", **(server or {})}
    return {"servers": {"vendor": named}, "targets": [{"path": "/srv", "from": ["vendor:/pub/"], **target}]}


def validated(given: dict[str, Any]) -> Any:
    return plugins.validate_options("ftp", given)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"url": "http://ftp.example.com"}, "begins with ftp://"),
        ({"url": "ftp://ftp.example.com/pub"}, "paths stand in `from`"),
        ({"url": f"ftp://shop:{PASSWORD}@ftp.example.com"}, "never holds a password"),
        ({"url": "ftp://shop@ftp.example.com"}, "as `username`"),
        ({"url": "ftp://-oProxyCommand=x"}, "SCHEME://HOST"),
        ({"url": "ftp://ftp.example.com:99999"}, "no address"),
        ({"url": "ftp://[::1"}, "no address"),
        ({"username": "a\r\nDELE x"}, "control characters"),
        ({"username": "a", "password": PASSWORD, "password_file": "/x"}, "one place"),
        ({"key_file": "/k"}, "for sftp:// only"),
        ({"known_hosts": "/k"}, "for sftp:// only"),
        ({"ca_file": "/ca"}, "for ftpes:// and ftps:// only"),
        ({"url": "sftp://h", "passive": False}, "not for sftp://"),
        ({"url": "sftp://h", "proxy": "http://p:3128"}, "not for sftp://"),
        ({"proxy": "http://p:3128", "passive": False}, "passive connections through only"),
        ({"proxy": f"http://u:{PASSWORD}@p:3128"}, "a proxy is http://"),
        ({"proxy": "socks://p:3128"}, "a proxy is http://"),
        ({"pasive": False}, "did you mean 'passive'"),
    ],
)
def test_a_server_that_cannot_be_is_refused_and_no_password_is_told(server: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionsError) as caught:
        validated(options(server))
    assert said in caught.value.message
    assert PASSWORD not in caught.value.message + str(caught.value.to_dict())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"from": ["pub/drivers"]}, "SERVER:PATH"),
        ({"from": ["other:/pub"]}, "no server 'other'"),
        ({"from": ["vendor:"]}, "SERVER:PATH"),
        ({"from": ["vendor:/a\nb"]}, "control characters"),
        ({"from": [f"ftp://shop:{PASSWORD}@ftp.example.com/pub/"]}, "never holds a password"),
        ({"from": ["http://ftp.example.com/pub/"]}, "begins with ftp://"),
        ({"from": ["ftp://h/%0d%0aDELE"]}, "control characters"),
        ({"from": []}, "needs `from`"),
        ({"from": ["sftp://h/x"], "binary": False}, "sftp knows no text"),
        ({"path": "srv"}, "not absolute"),
        ({"path": "/", "synchronize": True}, "name a directory"),
    ],
)
def test_a_target_that_cannot_be_is_refused_and_no_password_is_told(target: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionsError) as caught:
        validated(options(**target))
    assert said in caught.value.message
    assert PASSWORD not in caught.value.message


def test_what_travels_holds_no_password_and_is_taken_on_arrival() -> None:
    given = options({"username": "shop", "password": PASSWORD}, mode="0640", follow_links=True)
    travels = validated(given).model_dump(mode="json")
    assert PASSWORD not in str(travels) + repr(validated(given))
    assert travels["targets"][0]["from"] == ["vendor:/pub/"]
    assert validated(travels).model_dump(mode="json") == travels
    other = options({"username": "shop", "password": "another-one-1234"}, mode="0640", follow_links=True)
    assert validated(other).model_dump(mode="json") == travels, "a changed password makes no new revision"


def test_a_password_that_is_still_encrypted_passes_a_check_and_no_build() -> None:
    vaulted = validated(options({"username": "shop", "password": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n61"}}))
    with pytest.raises(BuildError, match="still encrypted"):
        reveal(vaulted.servers["vendor"].password)


def test_logins_show_no_password() -> None:
    login = SftpLogin("h", 22, "shop", PASSWORD)
    assert PASSWORD not in " ".join(login.command()) + repr(login)
    assert PASSWORD not in repr(FtpLogin("ftp", "h", 21, "shop", PASSWORD))


def test_the_words_for_sftp_check_the_host_and_cannot_be_taken_for_options() -> None:
    words = SftpLogin("::1", 22, "shop", None, "/k %h", "/known hosts").command()
    assert words[-2:] == ["--", "[::1]"]
    assert "StrictHostKeyChecking=yes" in words
    assert "BatchMode=yes" in words
    assert 'IdentityFile="/k %%h"' in words
    assert 'UserKnownHostsFile="/known hosts"' in words


@pytest.mark.parametrize("name", [b"-rf", b"a b", b"*", b"#x", b'"', b"'", b"\\", b"~", b"{a,b}"])
def test_names_in_commands_of_sftp_mean_themselves(name: bytes) -> None:
    word = quoted(name)
    assert not word.startswith((b"-", b"#", b"~"))
    assert word.removeprefix(b"./").replace(b"\\\\", b"\0").replace(b"\\", b"").replace(b"\0", b"\\") == name


def test_the_password_is_told_to_the_ssh_of_sftp_and_to_none_below_it(tmp_path: Path) -> None:
    nest = tmp_path / "nest"
    nest.write_text('#!/bin/sh\nif [ "$1" -gt 1 ]; then "$0" $(($1 - 1)); else "$SSH_ASKPASS"; fi\ntrue\n')
    nest.chmod(0o755)
    askpass = _Askpass(PASSWORD)
    try:
        for depth, said in ((1, ""), (2, f"{PASSWORD}\n"), (3, "")):
            command, environment = [str(nest), str(depth)], os.environ | askpass.environment
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.stdout == said, depth
    finally:
        askpass.close()
