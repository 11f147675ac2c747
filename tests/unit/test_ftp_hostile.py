"""The FTP type against servers that lie, stall and never end."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_ftp import HostileFtp, directory_line, file_line, link_line
from install_depot import Depot

from ted.errors import BuildError, EmptySourceError, TedError, TransferError, UnreachableError
from ted_plugins.sources import ftp as ftp_module
from ted_plugins.sources import sessions


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


def build(depot: Depot, server: HostileFtp, **options: Any) -> str:
    target = {"path": "%DEST_VOLUME%", "from": ["evil:/"], **options.pop("target", {})}
    given = {"timeout": 2, "fetch_retries": 0, **options}
    return depot.build(target, type="ftp", servers={"evil": {"url": server.url}}, **given)


def everything_below(depot: Depot) -> set[str]:
    return {str(path.relative_to(depot.root)) for path in depot.root.rglob("*")}


@pytest.mark.parametrize(
    "name", [b"../../../etc/cron.d/evil", b"a/b", b"..", b".", b"x\0y", b"", b"/etc/passwd", b"x" * 300, b"a\rb"]
)
def test_a_name_that_would_leave_its_directory_ends_the_build(depot: Depot, name: bytes) -> None:
    with (
        HostileFtp(listing=lambda _: [file_line(name)], content=lambda _: [b"evil!"]) as server,
        pytest.raises(BuildError, match="the server lists"),
    ):
        build(depot, server)
    assert not any("evil" in path for path in everything_below(depot))


def test_a_line_nobody_understands_ends_the_build(depot: Depot) -> None:
    with HostileFtp(listing=lambda _: [b"11-26-26 07:14AM <DIR> pub"]) as server, pytest.raises(BuildError) as caught:
        build(depot, server)
    assert "neither MLSD's nor a Unix server's" in caught.value.message


def test_an_endless_listing_ends(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftp_module, "MAX_LISTING_BYTES", 1 << 20)
    endless = (file_line(b"file%d" % number) for number in itertools.count())
    with HostileFtp(listing=lambda _: endless) as server, pytest.raises(BuildError, match="a listing of more than"):
        build(depot, server)


def test_an_endless_line_ends(depot: Depot) -> None:
    with HostileFtp(listing=lambda _: [b"-" * 100_000]) as server, pytest.raises(BuildError, match="a line of more"):
        build(depot, server)


def test_directories_without_end_end(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_DEPTH", 20)
    with HostileFtp(listing=lambda _: [directory_line(b"deeper")]) as server:
        with pytest.raises(BuildError, match="directories deep"):
            build(depot, server)
        with pytest.raises(BuildError, match="more than 10 files and directories"):
            build(depot, server, max_files=10)


def test_more_files_than_allowed_end_the_build(depot: Depot) -> None:
    lines = [file_line(b"file%d" % number) for number in range(20)]
    with HostileFtp(listing=lambda _: lines, content=lambda _: [b"12345"]) as server:
        with pytest.raises(BuildError, match="more than 10 files"):
            build(depot, server, max_files=10)
        with pytest.raises(BuildError, match="more than 40 bytes"):
            build(depot, server, max_bytes=40)
        assert len([command for command in server.commands if command.startswith("RETR")]) <= 8 + 10


def test_an_answer_without_end_ends(depot: Depot) -> None:
    def endless() -> Iterator[bytes]:
        yield b"211-features\r\n"
        while True:
            yield b" AND ANOTHER ONE\r\n" * 1000

    with HostileFtp(answers={"FEAT": endless}) as server, pytest.raises(TransferError, match="an answer of more than"):
        build(depot, server)


@pytest.mark.parametrize("sent", [4, 6])
def test_a_file_of_another_size_than_listed_is_not_taken(depot: Depot, sent: int) -> None:
    with (
        HostileFtp(listing=lambda _: [file_line(b"file", 5)], content=lambda _: [b"x" * sent]) as server,
        pytest.raises(TransferError, match="5 bytes"),
    ):
        build(depot, server)


@pytest.mark.parametrize("size", [1000, 2 << 20])
def test_a_file_without_end_is_cut_off_where_it_was_listed_to_end(depot: Depot, size: int) -> None:
    with HostileFtp(
        listing=lambda _: [file_line(b"file", size)], content=lambda _: itertools.repeat(b"x" * 65536)
    ) as server:
        with pytest.raises(TransferError, match="more comes"):
            build(depot, server)
        sizes = [path.stat().st_size for path in depot.root.rglob("*") if path.is_file()]
    assert max(sizes, default=0) < size + (1 << 20)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_data_is_fetched_from_the_server_itself_whatever_address_it_names(depot: Depot) -> None:
    with HostileFtp(
        listing=lambda _: [file_line(b"file")], content=lambda _: [b"hello"], pasv_host="192,0,2,66"
    ) as server:
        build(depot, server)
    assert depot.extract().state == "extracted"
    assert (depot.root / "target" / "file").read_bytes() == b"hello"


@pytest.mark.parametrize("size", [1000, 2 << 20])
def test_a_transfer_that_stalls_ends_in_time(depot: Depot, size: int) -> None:
    with HostileFtp(
        listing=lambda _: [file_line(b"file", size)], content=lambda _: [b"x" * 10], stall_after=10
    ) as server:
        started_s = time.monotonic()
        with pytest.raises(TransferError, match="no answer in time"):
            build(depot, server, timeout=1)
        assert time.monotonic() - started_s < 20


def test_a_transfer_that_drips_ends_in_time(depot: Depot) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b"x"
            time.sleep(0.05)

    with HostileFtp(listing=lambda _: [file_line(b"file", 10**6)], content=lambda _: drip()) as server:
        started_s = time.monotonic()
        with pytest.raises(TransferError, match="no answer in time"):
            build(depot, server, timeout=1)
        assert time.monotonic() - started_s < 20


def test_links_that_lead_in_circles_end(
    depot: Depot, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_DEPTH", 10)

    def listing(directory: str) -> list[bytes]:
        return [file_line(b"data.bin"), link_line(b"again", b".."), directory_line(b"sub")][
            : 2 if "sub" in directory else 3
        ]

    with HostileFtp(listing=listing, content=lambda _: [b"hello"]) as server:
        build(depot, server, max_files=2000, target={"follow_links": False})
        assert "2 symbolic links are left out" in caplog.text
        with pytest.raises(BuildError, match="directories deep"):  # this server says that each is another one
            build(depot, server, max_files=2000, target={"follow_links": True})


def test_a_source_that_is_gone_or_empty_is_an_error(depot: Depot) -> None:
    with (
        HostileFtp(answers={"CWD": "550 no such directory", "SIZE": "550 no such file"}) as server,
        pytest.raises(EmptySourceError, match="no such file or directory"),
    ):
        build(depot, server)
    with HostileFtp() as server:
        with pytest.raises(EmptySourceError):
            build(depot, server)
        build(depot, server, allow_empty=True)


def test_what_a_server_says_reaches_a_message_without_what_acts_on_a_terminal(depot: Depot) -> None:
    with HostileFtp(answers={"USER": "530 \x1b[31mno\x07"}) as server, pytest.raises(BuildError) as caught:
        build(depot, server)
    assert "refused: 530" in caught.value.message
    assert caught.value.message.isprintable()


def test_a_server_that_echoes_the_password_does_not_spread_it(depot: Depot) -> None:
    with (
        HostileFtp(answers={"USER": "331 password", "PASS": "530 canary-4711 is wrong"}) as server,
        pytest.raises(TedError) as caught,
    ):
        depot.build(
            {"path": "/srv", "from": ["evil:/"]}, type="ftp", fetch_retries=0,
            servers={"evil": {"url": server.url, "username": "shop", "password": "canary-4711"}},
        )  # fmt: skip
    assert "canary" not in str(caught.value.to_dict())
    assert "check username and password" in str(caught.value.hint)


def test_a_failed_build_leaves_the_former_revision_and_a_second_try_goes_on(depot: Depot) -> None:
    lines = [file_line(b"a", 5)]
    with HostileFtp(listing=lambda _: lines, content=lambda path: [b"hello"] if path == "/a" else [b"cut"]) as server:
        first = build(depot, server)
        lines.append(file_line(b"b", 5))
        with pytest.raises(TransferError):
            build(depot, server)
    assert [path.name for path in (depot.working.distribution("hq", "pos")).iterdir() if path.is_dir()] == [first]
    assert depot.extract().revision == first


def test_a_greeting_that_comes_with_the_proxys_answer_is_heard() -> None:
    def serve() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", server.port)) as far:
            near.recv(4096)
            near.sendall(b"HTTP/1.0 200 there you are\r\nVia: me\r\n\r\n" + far.recv(4096))
            while data := near.recv(4096):
                far.sendall(data)
                near.sendall(far.recv(4096))

    with HostileFtp() as server, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ftp_module.FtpSession(ftp_module.FtpLogin("ftp", "127.0.0.1", server.port, timeout_s=5, proxy=proxy)).close()
        thread.join(5)


def test_a_proxy_is_told_an_address_of_ipv6_in_brackets() -> None:
    asked: list[bytes] = []

    def serve() -> None:
        near, _ = listener.accept()
        with near:
            asked.append(near.recv(4096).splitlines()[0])
            near.sendall(b"HTTP/1.0 503 not today\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="503"):
            ftp_module.FtpSession(ftp_module.FtpLogin("ftp", "2001:db8::1", 2121, timeout_s=5, proxy=proxy))
        thread.join(5)
    assert asked[0].startswith(b"CONNECT [2001:db8::1]:2121 HTTP/1.")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), ("no certificate", "holds no certificates"), ("", "no certificates")]
)
def test_a_file_of_authorities_that_cannot_be_used_is_told(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(BuildError, match=rf"ca\.pem: .*{said}") as caught:
        ftp_module.FtpSession(ftp_module.FtpLogin("ftpes", "127.0.0.1", 9, ca_file=str(tmp_path / "ca.pem")))
    assert "Distributor" in str(caught.value.hint)


def test_nothing_is_left_running_or_open(depot: Depot) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with HostileFtp(listing=lambda _: [file_line(b"file", 5)], content=lambda _: [b"hell"]) as server:
        for _ in range(3):
            with pytest.raises(TransferError):
                build(depot, server)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
