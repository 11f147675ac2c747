"""The FTP type with real servers: vsftpd with and without TLS, one that knows MLSD, and sshd."""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from file_servers import PASSWORD, SERVED, USER, Mlsd, Server, Sftp, Vsftpd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from install_depot import Depot

from ted.errors import BuildError, TedError, TrustError
from ted_plugins.sources.sftp import UNSURE_BYTES, SftpLogin, SftpSession

OLD = 1_500_000_000
Named = dict[str, Any]


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    tmp_path.chmod(0o755)
    return Depot(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A tree with names that hurt, a program, links and a loop; all of it of 2017."""
    root = tmp_path / "files"
    for path, text in {
        "readme.txt": "read me\n", "sub dir/a b.txt": "blanks\n", "sub dir/-dash": "dash\n", "sub dir/#hash": "hash\n",
        "deep/er/still/x": "x" * 70_000, "star*?[1]": "star\n", "quote'\"\\": "quote\n", "caf\u00e9": "utf-8\n",
        os.fsdecode(b"latin-\xe9"): "latin\n", " lead": "lead\n", "{a,b}~": "braces\n", ".hidden": "dot\n",
    }.items():  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "large").write_bytes(os.urandom(1_500_000))
    age(root)
    return root


def age(root: Path, at: int = OLD) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (at, at), follow_symlinks=False)


def options(server: Named, path: str = "/", **more: Any) -> Named:
    target = {"path": "%DEST_VOLUME%", "from": [f"s:{path}"], **more.pop("target", {})}
    return {"servers": {"s": server}, "targets": [target], "timeout": 20, **more}


def build(depot: Depot, server: Named, path: str = "/", **more: Any) -> str:
    given = options(server, path, **more)
    return depot.build(*given.pop("targets"), type="ftp", **given)


def differences(one: Path, other: Path) -> str:
    """Return what rsync finds different, directories' times aside: those are no part of what servers tell."""
    command = [
        "rsync",
        "-n",
        "-c",
        "-a",
        "-O",
        "--delete",
        "--itemize-changes",
        "--omit-dir-times",
        f"{one}/",
        f"{other}/",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def address(server: Server, scheme: str = "ftp", **more: Any) -> Named:
    host = f"[{server.address}]" if ":" in server.address else server.address
    return {"url": f"{scheme}://{host}:{server.port}", **more}


def shop(server: Vsftpd, scheme: str = "ftp", **more: Any) -> Named:
    ca_file = {"ca_file": str(server.ca_file)} if server.ca_file else {}
    return address(server, scheme, username=USER, password=PASSWORD, **ca_file, **more)


def by_key(server: Sftp, **more: Any) -> Named:
    return address(
        server, "sftp", username=server.user, key_file=str(server.key_file),
        known_hosts=str(server.known_hosts_file), **more,
    )  # fmt: skip


Way = tuple[str, Callable[[Path, Path], tuple[Any, Named, str]]]


def _ways() -> dict[str, Callable[[Path, Path], tuple[Any, Named, str]]]:
    def vsftpd(scheme: str, tls: str | None = None, **more: Any) -> Callable[[Path, Path], tuple[Any, Named, str]]:
        def start(root: Path, files: Path) -> tuple[Any, Named, str]:
            server = Vsftpd(root, files, anonymous=False, tls=tls)
            return server, shop(server, scheme, **more), "/"

        return start

    def anonymous(root: Path, files: Path) -> tuple[Any, Named, str]:
        server = Vsftpd(root, files)
        return server, address(server), "/"

    def ipv6(root: Path, files: Path) -> tuple[Any, Named, str]:
        server = Vsftpd(root, files, address="::1", port_enable="NO")
        return server, address(server), "/"

    def mlsd(root: Path, files: Path) -> tuple[Any, Named, str]:
        (files / os.fsdecode(b"latin-\xe9")).unlink()  # this server knows no names but UTF-8
        server = Mlsd(root, files)
        return server, address(server, username=USER, password=PASSWORD), "/"

    def sftp(root: Path, files: Path) -> tuple[Any, Named, str]:
        server = Sftp(root)
        return server, by_key(server), f"{files}/"

    return {
        "anonymous": anonymous, "user": vsftpd("ftp"), "active": vsftpd("ftp", passive=False),
        "explicit TLS": vsftpd("ftpes", "explicit"), "implicit TLS": vsftpd("ftps", "implicit"),
        "active TLS": vsftpd("ftpes", "explicit", passive=False), "IPv6": ipv6, "MLSD": mlsd, "sftp": sftp,
    }  # fmt: skip


WAYS = _ways()


@pytest.mark.parametrize("way", WAYS)
def test_a_tree_arrives_whole_and_an_unchanged_one_costs_a_listing(
    depot: Depot, files: Path, tmp_path: Path, way: str
) -> None:
    server, named, path = WAYS[way](tmp_path / "server", files)
    with server:
        first = build(depot, named, path)
        assert depot.extract().state == "extracted"
        assert differences(files, tmp_path / "target") == ""
        asked = len(server.downloads())
        assert len(set(server.downloads())) == len([path for path in files.rglob("*") if path.is_file()])
        assert build(depot, named, path) == first
        assert len(server.downloads()) == asked
        (files / "readme.txt").write_text("read it\n")
        os.utime(files / "readme.txt", (OLD + 5_000_000, OLD + 5_000_000))
        (files / "star*?[1]").unlink()
        assert build(depot, named, path) > first
        assert {os.path.basename(name) for name in server.downloads()[asked:]} == {"readme.txt"}
    depot.extract()
    assert (tmp_path / "target" / "readme.txt").read_text() == "read it\n"
    depot.rollback()
    assert (tmp_path / "target" / "readme.txt").read_text() == "read me\n"


@pytest.mark.parametrize("way", ["anonymous", "MLSD", "sftp"])
def test_what_changed_without_another_size_or_minute_is_noticed(
    depot: Depot, files: Path, tmp_path: Path, way: str
) -> None:
    server, named, path = WAYS[way](tmp_path / "server", files)
    target = {"exclude": ["large", "deep/"]}
    with server:
        (files / "readme.txt").write_text("new 111\n")
        soon = time.time() + 60  # by a clock that is fast: another change may bear the same second
        os.utime(files / "readme.txt", (soon, soon))
        first = build(depot, named, path, target=target)
        before = (files / "readme.txt").stat()
        (files / "readme.txt").write_text("new 222\n")
        os.utime(files / "readme.txt", ns=(before.st_mtime_ns, before.st_mtime_ns))
        assert build(depot, named, path, target=target) > first
    depot.extract()
    assert (tmp_path / "target" / "readme.txt").read_text() == "new 222\n"


def test_when_a_listing_comes_to_show_the_year_nothing_is_fetched_again(
    depot: Depot, files: Path, tmp_path: Path
) -> None:
    age(files, int(time.time()) - 100 * 86400)
    with Vsftpd(tmp_path / "server", files) as server:
        first = build(depot, address(server))
        asked = len(server.downloads())
    # the same files, listed with the year: as half a year later
    for index in tmp_path.rglob("index.db"):
        with sqlite3.connect(index) as db:
            rows = db.execute("UPDATE files SET listed = replace(listed, ':', '.')").rowcount
        db.close()
    assert rows == asked
    with Vsftpd(tmp_path / "server2", files, port=server.port) as again:
        assert build(depot, address(server)) == first
        assert again.downloads() == []
        assert len([command for command in again.commands() if command.startswith("MDTM")]) == asked


def test_links_are_left_out_or_followed_and_a_loop_is_told(
    depot: Depot, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "to-file").symlink_to("readme.txt")
    (files / "to-directory").symlink_to("sub dir")
    (files / "deep" / "loop").symlink_to("..")
    (files / "dangling").symlink_to("nowhere")
    with Vsftpd(tmp_path / "server", files) as server, Sftp(tmp_path / "sftp") as sftp:
        for named, path in ((address(server), "/"), (by_key(sftp), f"{files}/")):
            caplog.clear()
            build(depot, named, path, target={"exclude": ["large"]})
            assert "4 symbolic links are left out" in caplog.text
            caplog.clear()
            build(depot, named, path, target={"exclude": ["large"], "follow_links": True})
            assert "'deep/loop' leads back to a directory it lies in" in caplog.text
            assert "the link 'dangling' leads to nothing" in caplog.text
            depot.extract()
            target = tmp_path / "target"
            assert (target / "to-file").read_text() == "read me\n"
            assert (target / "to-directory" / "a b.txt").read_text() == "blanks\n"
            assert not (target / "to-file").is_symlink()
            assert not (target / "deep" / "loop").exists()


def test_several_servers_files_and_directories_go_to_several_targets(
    depot: Depot, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "sub dir" / "tool.rpm").write_text("not really\n")
    age(files)
    with Vsftpd(tmp_path / "one", files) as one, Mlsd(tmp_path / "two", files / "deep") as two:
        depot.build(
            {"path": "%DEST_VOLUME%/a", "from": ["one:/sub dir", "one:readme.txt", "two:/er/"]},
            {"path": "%DEST_VOLUME%/b", "from": [f"ftp://127.0.0.1:{one.port}/sub%20dir/"], "exclude": ["*.rpm"],
             "mode": "0600", "remove": ["gone"]},
            type="ftp", servers={"one": address(one), "two": address(two)},
        )  # fmt: skip
    assert "1 RPM packages; the rpm type also installs them" in caplog.text
    (tmp_path / "target" / "b").mkdir(parents=True)
    (tmp_path / "target" / "b" / "gone").touch()
    depot.extract()
    found = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert found == {
        "a/sub dir/a b.txt", "a/sub dir/-dash", "a/sub dir/#hash", "a/sub dir/tool.rpm", "a/readme.txt", "a/still/x",
        "b/a b.txt", "b/-dash", "b/#hash",
    }  # fmt: skip
    assert (tmp_path / "target" / "b" / "a b.txt").stat().st_mode & 0o777 == 0o600


def test_an_entry_and_a_server_that_are_dropped_are_gone_from_the_next_revision(
    depot: Depot, files: Path, tmp_path: Path
) -> None:
    """FTP-9: nothing is asked of a server that is named no more, and what came from it goes."""
    target = {"path": "%DEST_VOLUME%", "synchronize": True}
    with Vsftpd(tmp_path / "one", files) as one:
        with Mlsd(tmp_path / "two", files / "deep") as two:
            servers = {"one": address(one), "two": address(two)}
            entries = ["one:/sub dir", "one:readme.txt", "two:/er/"]
            depot.build({**target, "from": entries}, type="ftp", servers=servers)
            depot.extract()
            assert (tmp_path / "target" / "still" / "x").exists()
        del servers["two"]
        depot.build({**target, "from": entries[:1]}, type="ftp", servers=servers)
    depot.extract()
    found = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert found == {"sub dir/a b.txt", "sub dir/-dash", "sub dir/#hash"}


def test_text_gets_the_ends_of_lines_of_this_machine(depot: Depot, files: Path, tmp_path: Path) -> None:
    (files / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    age(files)
    with Vsftpd(tmp_path / "server", files, ascii_download_enable="YES") as server:
        first = build(depot, address(server), "/readme.txt", target={"binary": False})
        assert build(depot, address(server), "/readme.txt", target={"binary": False}) == first
        depot.extract()
        assert (tmp_path / "target" / "readme.txt").read_bytes() == b"read me\n"
        assert server.downloads() == ["/readme.txt"]
        assert "TYPE A" in server.commands()


# -- logins and trust


def test_a_wrong_password_is_refused_once_and_told_without_it(depot: Depot, files: Path, tmp_path: Path) -> None:
    with Vsftpd(tmp_path / "server", files, anonymous=False) as server:
        wrong = {**shop(server), "password": f"not-{PASSWORD}"}
        with pytest.raises(BuildError, match="logging in as shop: refused: 530") as caught:
            build(depot, wrong)
        assert PASSWORD not in str(caught.value.to_dict())
        assert server.commands().count("PASS <password>") == 1


def test_a_password_comes_from_a_file_or_the_environment(
    depot: Depot, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    monkeypatch.setenv("TED_TEST_FTP", PASSWORD)
    with Vsftpd(tmp_path / "server", files, anonymous=False) as server:
        for where in ({"password_file": str(secret)}, {"password_env": "TED_TEST_FTP"}):
            build(depot, address(server, username=USER, **where), "/readme.txt")


def test_a_certificate_nobody_vouches_for_is_refused_before_the_password_is_sent(
    depot: Depot, files: Path, tmp_path: Path
) -> None:
    with Vsftpd(tmp_path / "server", files, anonymous=False, tls="explicit") as server:
        unknown = {key: value for key, value in shop(server, "ftpes").items() if key != "ca_file"}
        with pytest.raises(TrustError, match="its certificate does not hold") as caught:
            build(depot, unknown)
        assert "ca_file" in str(caught.value.hint)
        assert not any(command.startswith("USER") for command in server.commands())


def test_a_server_without_tls_gets_no_password_of_one_that_should_have_it(
    depot: Depot, files: Path, tmp_path: Path
) -> None:
    with Vsftpd(tmp_path / "server", files, anonymous=False) as server:
        with pytest.raises(TedError):
            build(depot, shop(server, "ftpes"), fetch_retries=0)
        assert not any(command.startswith("PASS") for command in server.commands())


def test_a_password_in_clear_is_warned_about(
    depot: Depot, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Vsftpd(tmp_path / "server", files, anonymous=False) as server:
        build(depot, shop(server), "/readme.txt")
    assert "travels unencrypted" in caplog.text


def test_a_host_key_that_is_not_known_is_refused(depot: Depot, files: Path, tmp_path: Path) -> None:
    empty = tmp_path / "nobody"
    empty.touch()
    with Sftp(tmp_path / "sftp") as server:
        for hosts in (server.wrong_hosts_file, empty):
            with pytest.raises(TrustError, match="its host key is not known"):
                build(depot, {**by_key(server), "known_hosts": str(hosts)}, f"{files}/")
        with pytest.raises(BuildError, match="the login is refused"):
            build(depot, {**by_key(server), "key_file": str(server.other_key_file)}, f"{files}/")


@pytest.mark.parametrize("most", [1, 2])
def test_more_connections_than_a_server_lets_in_are_no_error(
    depot: Depot, files: Path, tmp_path: Path, most: int
) -> None:
    (files / "many").mkdir()
    for number in range(600):  # more than may wait to be fetched
        (files / f"many/{number}").touch()
    age(files)
    with Vsftpd(tmp_path / "server", files, max_per_ip=most) as server:
        build(depot, address(server), parallel=6)
    depot.extract()
    assert differences(files, tmp_path / "target") == ""


class Connect:
    """An HTTP proxy that knows CONNECT and nothing else."""

    def __init__(self) -> None:
        import http.server
        import socketserver

        reached = self.reached = []  # type: list[str]
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                reached.append(self.path)
                port = int(self.path.rpartition(":")[2])
                with outer.joined(port) as line:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.flush()
                    line.run(self.connection)

            def log_message(self, *_: object) -> None: ...

        class Proxy(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Proxy(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def joined(self, port: int) -> _Line:
        return _Line(port)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


class _Line:
    def __init__(self, port: int) -> None:
        import socket

        self.far = socket.create_connection(("127.0.0.1", port), timeout=10)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_error: object) -> None:
        self.far.close()

    def run(self, near: Any) -> None:
        import select

        while True:
            for end in select.select([near, self.far], [], [])[0]:
                data = end.recv(65536)
                if not data:
                    return
                (self.far if end is near else near).sendall(data)


def test_a_proxy_carries_both_connections(depot: Depot, files: Path, tmp_path: Path) -> None:
    proxy = Connect()
    try:
        with Vsftpd(tmp_path / "server", files, anonymous=False, tls="explicit") as server:
            through = shop(server, "ftpes", proxy=f"http://127.0.0.1:{proxy.server.server_address[1]}")
            build(depot, through, "/sub dir/", parallel=1)
            depot.extract()
        assert (tmp_path / "target" / "a b.txt").read_text() == "blanks\n"
        assert proxy.reached[0] == f"127.0.0.1:{server.port}"
        assert len(proxy.reached) >= 2 + 3
    finally:
        proxy.close()


# -- cut in the middle


def cut_when(path: Path, size: int, cut: Callable[[], None]) -> threading.Thread:
    """Cut once a download below ``path`` has grown to ``size`` bytes."""

    def watch() -> None:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with suppress(OSError):
                if any(found.stat().st_size >= size for found in path.rglob("parts/*") if found.suffix != ".json"):
                    cut()
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


LARGE = 12 << 20


@pytest.fixture
def large(files: Path) -> Path:
    (files / "large").write_bytes(os.urandom(LARGE))
    age(files)
    return files / "large"


def test_a_download_that_was_cut_goes_on_where_it_stopped(depot: Depot, large: Path, tmp_path: Path) -> None:
    with Vsftpd(tmp_path / "server", large.parent, anon_max_rate=8_000_000) as server:
        thread = cut_when(depot.root, 4 << 20, lambda: kill_all(server.sessions()))
        build(depot, address(server), "/large")
        thread.join()
        resumed = [int(command[5:]) for command in server.commands() if command.startswith("REST ")]
    assert len(resumed) == 1
    assert 4 << 20 <= resumed[0] < LARGE
    depot.extract()
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()


def test_a_build_that_was_killed_goes_on_at_the_next_one(depot: Depot, large: Path, tmp_path: Path) -> None:
    with Vsftpd(tmp_path / "server", large.parent, anon_max_rate=8_000_000) as server:
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                build(depot, address(server), "/large")
            os._exit(0)
        cut_when(depot.root, 4 << 20, lambda: os.kill(pid, signal.SIGKILL)).join()
        os.waitpid(pid, 0)
        build(depot, address(server), "/large")
        resumed = [int(command[5:]) for command in server.commands() if command.startswith("REST ")]
    assert len(resumed) == 1
    assert 4 << 20 <= resumed[0] < LARGE
    depot.extract()
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()


def test_a_file_that_changed_meanwhile_is_not_joined_with_its_former_half(
    depot: Depot, large: Path, tmp_path: Path
) -> None:
    with Vsftpd(tmp_path / "server", large.parent, anon_max_rate=8_000_000) as server:
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                build(depot, address(server), "/large")
            os._exit(0)
        cut_when(depot.root, 4 << 20, lambda: os.kill(pid, signal.SIGKILL)).join()
        os.waitpid(pid, 0)
        large.write_bytes(os.urandom(LARGE))
        os.utime(large, (OLD + 60, OLD + 60))
        build(depot, address(server), "/large")
        assert not any(command.startswith("REST ") for command in server.commands())
    depot.extract()
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()


def test_a_download_by_sftp_that_was_cut_goes_on_where_it_stopped(depot: Depot, large: Path, tmp_path: Path) -> None:
    with Sftp(tmp_path / "sftp") as server:
        thread = cut_when(depot.root, 6 << 20, lambda: kill_all(server.sessions()))
        build(depot, by_key(server), str(large), fetch_rate="6MB")
        thread.join()
        assert server.bytes_read() < LARGE + UNSURE_BYTES + (3 << 20)
    depot.extract()
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("way", ["anonymous", "sftp"])
def test_the_fetch_rate_holds_over_all_connections(depot: Depot, files: Path, tmp_path: Path, way: str) -> None:
    for number in range(4):
        (files / "deep" / f"piece{number}").write_bytes(os.urandom(500_000))
    server, named, path = WAYS[way](tmp_path / "server", files)
    with server:
        started_s = time.monotonic()
        build(depot, named, f"{path}deep/", fetch_rate="1MB")
        took_s = time.monotonic() - started_s
    assert 1.5 < took_s < 15


# -- secrets


class Watch:
    """Looks at every process of the machine again and again: command lines and environments."""

    def __init__(self, word: str) -> None:
        self._word = word.encode()
        self._ending = threading.Event()
        self.seen: list[str] = []
        self.looks = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(0.005):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        if self._word in (path / name).read_bytes():
                            self.seen.append(f"{path}/{name}")

    def close(self) -> None:
        self._ending.set()
        self._thread.join(10)


def canary_below(root: Path, word: str) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


def test_a_password_reaches_ssh_and_no_process_list_no_file_and_no_revision(
    depot: Depot, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, askpass_server: Sftp
) -> None:
    caplog.set_level(logging.DEBUG)
    watch = Watch(PASSWORD)
    named = address(
        askpass_server, "sftp", username=USER, password=PASSWORD, known_hosts=str(askpass_server.known_hosts_file)
    )
    try:
        build(depot, named, f"{SERVED}/sub dir/", parallel=2)
        depot.extract()
    finally:
        watch.close()
    assert watch.looks > 10
    assert watch.seen == []
    assert (tmp_path / "target" / "a b.txt").read_text() == "blanks\n"
    assert canary_below(depot.root, PASSWORD) == []
    assert PASSWORD not in caplog.text
    assert list(Path("/tmp").glob("ted-askpass-*")) == []


@pytest.fixture
def askpass_server(tmp_path: Path, files: Path) -> Iterator[Sftp]:
    """An sshd that takes nothing but the password."""
    with Sftp(tmp_path / "sftp", passwords_for=files) as server:
        yield server


NAMES = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="/\x7f"), min_size=1, max_size=40
)


def test_sftp_fetches_whatever_a_file_is_called(tmp_path: Path) -> None:
    with Sftp(tmp_path / "sftp") as server:
        login = SftpLogin(
            "127.0.0.1", server.port, server.user, key_file=str(server.key_file),
            known_hosts=str(server.known_hosts_file),
        )  # fmt: skip
        session = SftpSession(login)
        (tmp_path / "there").mkdir()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(NAMES.filter(lambda name: name not in {".", ".."} and not re.search(r"\\[0-3][0-7]{2}", name)))
        def fetches(name: str) -> None:
            there = tmp_path / "there" / name
            there.write_text(name)
            os.utime(there, (OLD, OLD))
            place = tmp_path / "place"
            place.write_bytes(b"")
            raw = os.fsencode(there)
            size = there.stat().st_size
            listed = [found for found in session.entries(os.fsencode(there.parent)) if found.name == os.fsencode(name)]
            assert [found.size for found in listed] == [size]
            session.download(raw, str(place), size, go_on=False, watch=lambda _size: None)
            assert place.read_text() == name
            assert session.modified_at(raw, size) == OLD
            there.unlink()

        try:
            fetches()
        finally:
            session.quit()
