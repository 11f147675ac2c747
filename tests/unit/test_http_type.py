"""The HTTP type against nginx, and against servers that mean no good."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import CountingProxy
from install_depot import NAME, Depot
from web_servers import PASSWORD, TOKEN, USER, Nginx, answer, hostile, nginx, page

from ted import plugins
from ted.content.builder import RevisionBuilder
from ted.errors import (
    BuildError,
    EmptySourceError,
    OptionsError,
    RefusedError,
    SourceChangedError,
    TedError,
    TransferError,
    TrustError,
    UnreachableError,
)

OLD_S = 1_600_000_000


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    for number, (name, data) in enumerate(files.items()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (OLD_S + number, OLD_S + number))
    return directory


FILES = {
    "a.txt": b"A" * 1000, "empty": b"", "d/b.txt": b"B" * 20_000, "d/e/c.bin": bytes(range(256)) * 8,
    "d/with space & more;.txt": b"S", "d/h%20#?.txt": b"H", "uml\u00e4ut": b"U", "x:y": b"X",
    "a-name-so-long-that-nginx-cuts-it-short-in-the-text-of-its-page.txt": b"L",
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return fill(tmp_path / "served", FILES)


@pytest.fixture
def server(tmp_path: Path, served: Path) -> Iterator[Nginx]:
    with nginx(tmp_path / "nginx", served) as running:
        yield running


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path / "node")


class Site:
    """Builds and extracts one distribution of the type."""

    def __init__(self, depot: Depot, tmp_path: Path) -> None:
        self.depot, self.target, self.scratch = depot, tmp_path / "target", tmp_path / "scratch"
        self.warnings: list[str] = []

    def build(self, *sources: Any, **options: Any) -> bool:
        """Build what these addresses have, for one target; return whether it made a new revision."""
        target = {"path": str(self.target), "synchronize": True, "from": list(sources)} | options.pop("target", {})
        return self.build_targets([target], **options)

    def build_targets(self, targets: list[dict[str, Any]], **options: Any) -> bool:
        checked = plugins.validate_options("http", {"targets": targets, "fetch_retries": 0, **options})
        directory = self.depot.working.distribution("hq", NAME)
        cache = self.depot.working.build_cache(NAME)
        dumped = checked.model_dump(mode="json")
        with RevisionBuilder(directory, "hq", NAME, "http", {}, dumped, cache=cache) as builder:
            self.warnings = plugins.gather("http", builder, checked, self.scratch)
            result = builder.finish()
        self.depot.signed.add(hashlib.sha256(result.record_bytes).hexdigest())
        return result.changed

    def extract(self) -> Path:
        self.depot.extract()
        return self.target

    def mirrors(self) -> list[Path]:
        return sorted(self.scratch.glob("*.scratch/web-*/files"))


@pytest.fixture
def site(depot: Depot, tmp_path: Path) -> Iterator[Site]:
    yield Site(depot, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def same_content(source: Path, target: Path) -> str:
    """Return what rsync would change in content and times; owners are not the web's."""
    command = ["rsync", "-n", "-c", "-rt", "--omit-dir-times", "--delete", "-i", f"{source}/", f"{target}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def statuses(server: Nginx) -> dict[str, int]:
    counts: dict[str, int] = {}
    for request in server.requests():
        counts[request[2]] = counts.get(request[2], 0) + 1
    return counts


# -- what comes


@pytest.mark.parametrize("face", ["", "/json", "/zipped", "/to"])
def test_a_directory_arrives_as_it_is_and_a_second_build_asks_for_its_pages_only(
    site: Site, server: Nginx, served: Path, face: str
) -> None:
    assert site.build(f"{server.url}{face}/")
    assert same_content(served, site.extract()) == ""
    server.requests()
    assert not site.build(f"{server.url}{face}/")
    pages = [request[1] for request in server.requests() if request[2] == "200"]
    assert len(pages) == 3
    assert all(page.endswith("/") for page in pages)


def test_one_file_goes_to_the_target_under_its_name(site: Site, server: Nginx, served: Path) -> None:
    site.build(f"{server.url}/d/b.txt", {"url": f"{server.url}/a.txt?version=1", "name": "renamed"})
    target = site.extract()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        "b.txt": b"B" * 20_000,
        "renamed": b"A" * 1000,
    }
    assert target.joinpath("b.txt").stat().st_mtime == (served / "d/b.txt").stat().st_mtime
    server.requests()
    assert not site.build(f"{server.url}/d/b.txt", {"url": f"{server.url}/a.txt?version=1", "name": "renamed"})
    assert statuses(server) == {"304": 2}


def test_changes_arrive_and_what_vanished_goes(site: Site, server: Nginx, served: Path) -> None:
    site.build(f"{server.url}/")
    site.extract()
    fill(served, {"a.txt": b"A" * 999, "new/n": b"N"})
    (served / "d/e/c.bin").unlink()
    (served / "d/e").rmdir()
    server.requests()
    assert site.build(f"{server.url}/")
    fetched = [request[1] for request in server.requests() if not request[1].endswith("/")]
    assert sorted(fetched) == ["/a.txt", "/new/n"]
    assert same_content(served, site.extract()) == ""


def test_a_change_of_the_minute_of_the_listing_is_seen(site: Site, server: Nginx, served: Path) -> None:
    """nginx tells minutes: a file that is rewritten in the minute of its last change, with its size, looks the same."""
    while not 5 < time.time() % 60 < 50:  # both times shall lie in the minute that is listed
        time.sleep(0.2)
    now_s = int(time.time()) - 3
    (served / "a.txt").write_bytes(b"1" * 100)
    os.utime(served / "a.txt", (now_s - 1, now_s - 1))
    site.build(f"{server.url}/")
    (served / "a.txt").write_bytes(b"2" * 100)
    os.utime(served / "a.txt", (now_s, now_s))
    assert site.build(f"{server.url}/")
    assert (site.extract() / "a.txt").read_bytes() == b"2" * 100


def test_a_change_within_one_second_is_seen(site: Site, server: Nginx, served: Path) -> None:
    for data in (b"1", b"2"):
        now_s = int(time.time())
        (served / "a.txt").write_bytes(data)
        os.utime(served / "a.txt", (now_s, now_s))
        assert site.build(f"{server.url}/a.txt")
        assert (site.extract() / "a.txt").read_bytes() == data


def test_depth_and_patterns_bound_what_is_taken(site: Site, server: Nginx) -> None:
    url = f"{server.url}/"

    def taken(**entry: Any) -> set[str]:
        site.build({"url": url, **entry})
        target = site.extract()
        return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}

    assert taken(depth=0) == {name for name in FILES if "/" not in name}
    assert taken(depth=1, include=["*.txt"]) == {name for name in FILES if name.endswith(".txt")}
    assert taken(include=["/d/**"], exclude=["e/", "h*"]) == {"d/b.txt", "d/with space & more;.txt"}
    server.requests()
    site.build(url, target={"exclude": ["/d/"]})
    assert not any(request[1].startswith("/d/") for request in server.requests())


def test_two_targets_may_take_the_same_address_differently(site: Site, server: Nginx, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    targets = [
        {"path": str(one), "from": [{"url": f"{server.url}/d/", "include": ["*.txt"], "depth": 0}]},
        {"path": str(two), "from": [f"{server.url}/d/", f"{server.url}/a.txt"]},
    ]
    site.build_targets(targets)
    site.extract()
    assert sorted(path.name for path in one.iterdir()) == ["b.txt", "h%20#?.txt", "with space & more;.txt"]
    assert sorted(path.name for path in two.iterdir()) == [
        "a.txt",
        "b.txt",
        "e",
        "h%20#?.txt",
        "with space & more;.txt",
    ]
    server.requests()
    assert not site.build_targets(targets)
    assert statuses(server) == {"200": 3, "304": 1}


def test_the_mirror_of_an_address_that_is_no_longer_named_goes(site: Site, server: Nginx) -> None:
    site.build(f"{server.url}/d/", f"{server.url}/a.txt")
    assert len(site.mirrors()) == 2
    site.build(f"{server.url}/a.txt")
    assert len(site.mirrors()) == 1


# -- what does not come


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/none/", EmptySourceError, "no such directory"), ("/none", EmptySourceError, "no such file"),
        ("/closed/", RefusedError, "answers 403"), ("/d", BuildError, "is a directory"),
        ("/round/", RefusedError, "more than 10 redirects"), ("/local/x", RefusedError, "not followed"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_an_error_and_the_former_revision_stays(
    site: Site, server: Nginx, served: Path, path: str, error: type[TedError], text: str
) -> None:
    site.build(f"{server.url}/")
    with pytest.raises(error, match=text):
        site.build(f"{server.url}{path}")
    assert same_content(served, site.extract()) == ""


def test_an_empty_directory_is_an_error_unless_it_may_be_empty(site: Site, server: Nginx, served: Path) -> None:
    (served / "hollow").mkdir()
    with pytest.raises(EmptySourceError, match="there is no file"):
        site.build(f"{server.url}/hollow/")
    site.build(f"{server.url}/hollow/", f"{server.url}/none/", f"{server.url}/d/", allow_empty=True)
    assert site.extract().joinpath("b.txt").exists()


def test_a_server_that_is_down_is_told_so(site: Site) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            site.build(f"http://127.0.0.1:{probe.getsockname()[1]}/")


def test_a_cut_line_is_gone_on_with(site: Site, server: Nginx, served: Path) -> None:
    fill(served, {"big.bin": os.urandom(3 << 20)})
    line = CountingProxy(server.port, rate_bytes_s=20e6)
    try:
        url = f"http://127.0.0.1:{line.port}/big.bin"
        cutter = Cutter(line, [1 << 20, 2 << 20])
        site.build(url, fetch_retries=5)
        assert cutter.done() == 2
        assert line.bytes < (3 << 20) + 300_000
    finally:
        line.close()
    assert (site.extract() / "big.bin").read_bytes() == (served / "big.bin").read_bytes()
    assert [request[2] for request in server.requests()][-1] == "206"


class Cutter:
    """Cuts a line whenever so many bytes have crossed it."""

    def __init__(self, line: CountingProxy, at_bytes: list[int]) -> None:
        self._line, self._at, self._cuts = line, list(at_bytes), 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for at in self._at:
            while self._line.bytes < at:
                time.sleep(0.002)
            self._line.cut()
            self._cuts += 1

    def done(self) -> int:
        self._thread.join(5)
        return self._cuts


def test_the_rate_holds_for_all_connections(site: Site, server: Nginx, served: Path) -> None:
    fill(served, {f"r/{n}": bytes(100_000) for n in range(6)})
    started_s = time.monotonic()
    site.build(f"{server.url}/r/", fetch_rate="400kB")
    assert 1.1 <= time.monotonic() - started_s < 8


def test_files_come_at_the_same_time_on_as_many_connections_as_may_be(site: Site) -> None:
    names, most = [f"f{n}" for n in range(9)], 3
    together = threading.Barrier(most, timeout=10)

    def serve(path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        if path == "/":
            connection.sendall(answer("200 OK", page(*names), content_type="text/html"))
            return
        together.wait()
        connection.sendall(answer("200 OK", path.encode()))

    with hostile(serve) as server:
        site.build(f"{server.url}/", parallel=most)
    assert {path.name: path.read_text() for path in site.extract().iterdir()} == {name: f"/{name}" for name in names}


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_is_asked_for_at_a_time_than_may_be_redirects_included(site: Site, most: int) -> None:
    at_once, lock, counts = threading.Semaphore(most), threading.Lock(), [0]

    def serve(path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        if path == "/":
            connection.sendall(answer("200 OK", page(*(f"f{n}" for n in range(8))), content_type="text/html"))
            return
        alone = at_once.acquire(blocking=False)
        with lock:
            counts[0] += not alone
        time.sleep(0.01)
        if alone:
            at_once.release()
        if path.startswith("/f"):
            connection.sendall(answer("302 Found", location=f"/to{path}"))
        else:
            connection.sendall(answer("200 OK", path.encode()))

    with hostile(serve) as server:
        site.build(f"{server.url}/", parallel=most)
    assert {path.read_text() for path in site.extract().iterdir()} == {f"/to/f{n}" for n in range(8)}
    assert counts == [0]


def test_a_build_that_fails_does_not_wait_for_a_server_that_is_silent(site: Site) -> None:
    asked, over = threading.Event(), threading.Event()

    def serve(path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        if path == "/":
            connection.sendall(answer("200 OK", page("silent", "forbidden"), content_type="text/html"))
        elif path == "/silent":
            connection.sendall(answer("200 OK", b"", content_length=str(4 << 20)) + bytes(2 << 20))
            asked.set()
            over.wait(20)
        else:
            asked.wait(10)
            connection.sendall(answer("403 Forbidden"))

    with hostile(serve) as server:
        began_s = time.monotonic()
        with pytest.raises(RefusedError, match="403"):
            site.build(f"{server.url}/")
        assert time.monotonic() - began_s < 10  # it may be silent for 60 s
        over.set()


def test_a_page_and_a_checksum_file_are_tried_again_as_files_are(site: Site) -> None:
    left = {"/": 1, "/sums": 1, "/f": 1}
    sums = f"{hashlib.sha256(b'F').hexdigest()}  f\n".encode()
    bodies = {"/": page("f"), "/sums": sums, "/f": b"F"}

    def serve(path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        if left[path]:
            left[path] -= 1
            connection.sendall(answer("503 Not Now") if path != "/f" else answer("200 OK", b"", content_length="9"))
            return
        kind = "text/html" if path == "/" else "text/plain"
        connection.sendall(answer("200 OK", bodies[path], content_type=kind))

    with hostile(serve) as server:
        with pytest.raises(TransferError, match="503"):
            site.build({"url": f"{server.url}/", "checksums": "sums"}, fetch_retries=0)
        left.update({"/": 1, "/sums": 1})
        site.build({"url": f"{server.url}/", "checksums": "sums"}, fetch_retries=1)
    assert (site.extract() / "f").read_bytes() == b"F"
    assert left == {"/": 0, "/sums": 0, "/f": 0}


@pytest.mark.parametrize("dripping", ["/", "/sums"])
def test_a_page_or_a_checksum_file_that_drips_has_its_time(
    site: Site, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ted_plugins.sources.web._PAGE_TIMEOUTS", 2)
    over = threading.Event()

    def serve(path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        if path != dripping:
            connection.sendall(answer("200 OK", page("f"), content_type="text/html"))
            return
        connection.sendall(answer("200 OK", b"", content_length="100000", content_type="text/html"))
        while not over.wait(0.02):
            connection.sendall(b" " * 10)

    with hostile(serve) as server:
        began_s = time.monotonic()
        more = {"checksums": "sums"} if dripping == "/sums" else {}
        with pytest.raises(BuildError, match="did not come whole within 2 s"):
            site.build({"url": f"{server.url}/", "timeout": 1, **more}, fetch_retries=3)
        assert time.monotonic() - began_s < 10
        over.set()


def test_a_checksum_file_that_the_own_rate_slows_down_has_that_time_besides(
    site: Site, server: Nginx, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ted_plugins.sources.web._PAGE_TIMEOUTS", 1)
    fill(served, {"d/SUMS": b"# padding\n" * 4000 + sums(served / "d"), "d/b.txt": FILES["d/b.txt"]})
    began_s = time.monotonic()
    site.build({"url": f"{server.url}/d/b.txt", "checksums": "SUMS", "timeout": 1}, fetch_rate="20kB")
    assert time.monotonic() - began_s > 2
    assert (site.extract() / "b.txt").read_bytes() == FILES["d/b.txt"]


def test_what_cannot_be_written_ends_the_build(site: Site, server: Nginx, served: Path) -> None:
    fill(served, {"large.bin": os.urandom(8 << 20)})
    site.build(f"{server.url}/d/")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, limit[1]))
        with pytest.raises(TedError, match="large"):
            site.build(f"{server.url}/large.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, former)
    site.build(f"{server.url}/large.bin")
    assert site.extract().joinpath("large.bin").read_bytes() == (served / "large.bin").read_bytes()


# -- TLS, credentials, proxies


def test_certificates_are_verified(site: Site, server: Nginx, served: Path) -> None:
    with pytest.raises(TrustError, match=r"certificate"):
        site.build(f"{server.tls_url}/")
    site.build({"url": f"{server.tls_url}/", "ca": server.ca})
    assert same_content(served, site.extract()) == ""
    site.build({"url": f"{server.tls_url}/d/", "verify_tls": False})
    assert "certificates are not verified" in site.warnings[0]
    with pytest.raises(TrustError):
        site.build({"url": f"{server.tls_url}/", "ca": str(server.root / "none.pem")})


def test_https_where_plain_http_is_spoken_has_a_hint(site: Site, server: Nginx) -> None:
    with pytest.raises(TransferError) as caught:
        site.build(f"{server.url.replace('http:', 'https:')}/d/")
    assert "http:// if not" in (caught.value.hint or "")


def test_a_client_certificate_is_shown(site: Site, server: Nginx) -> None:
    url, known = f"{server.tls_url}/mine/", {"ca": server.ca}
    with pytest.raises(RefusedError):
        site.build({"url": url, **known})
    site.build({"url": url, **known, "certificate": str(server.root / "client.pem"),
                "key": str(server.root / "client.key")})  # fmt: skip


def test_passwords_and_tokens(site: Site, server: Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = {"url": f"{server.url}/private/", "username": USER}
    for wrong in ({}, {"password": "wrong"}):
        with pytest.raises(RefusedError, match="answers 401") as refused:
            site.build({**private, **wrong})
        assert "wrong" not in f"{refused.value} {refused.value.hint}"
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o604)
    with pytest.raises(BuildError, match="others"):
        site.build({**private, "password_file": str(secret)})
    secret.chmod(0o600)
    monkeypatch.setenv("WEB_PASSWORD", PASSWORD)
    for right in ({"password": PASSWORD}, {"password_file": str(secret)}, {"password_env": "WEB_PASSWORD"}):
        site.build({**private, **right})
    site.build({"url": f"{server.url}/bearer/", "token": TOKEN})
    site.build({"url": f"{server.url}/bearer/", "headers": {"Authorization": f"Bearer {TOKEN}"}})
    with pytest.raises(RefusedError):
        site.build({"url": f"{server.url}/bearer/", "token": "other"})


def test_credentials_go_to_their_own_host_only(site: Site, server: Nginx) -> None:
    """A redirect leads from 127.0.0.1 to localhost, which is another host, that asks for a password."""
    entry = {"url": f"{server.url}/away/d/b.txt", "username": USER, "password": PASSWORD,
             "headers": {"Cookie": "canary"}}  # fmt: skip
    with pytest.raises(RefusedError, match="answers 401"):
        site.build(entry)
    first, second = server.requests()
    assert all(text in first[5] for text in ("canary", "Basic"))
    assert "canary" not in str(second)
    assert "Basic" not in second[5]
    with pytest.raises(RefusedError, match="takes the secret query to another host") as refused:
        site.build({"url": f"{server.url}/away/d/b.txt", "query": "canary=1"})  # nginx hands the query on
    assert "canary" not in str(refused.value)
    assert [request[1] for request in server.requests()] == ["/away/d/b.txt?canary=1"]


def test_secrets_and_addresses_need_not_be_ascii(site: Site) -> None:
    def reply(path: str, _headers: dict[str, str], line: socket.socket) -> None:
        if path.endswith("/"):
            line.sendall(answer("200 OK", page("\u00e4.txt"), content_type="text/html; charset=utf-8"))
        else:
            line.sendall(answer("200 OK", b"content"))

    secrets = {"username": "j\u00fcrgen", "password": "gew\u00fcrz", "headers": {"X-Key": "schl\u00fcssel"}}
    with hostile(reply) as server:
        site.build({"url": f"{server.url}/d\u00e9p\u00f4t/", **secrets})
    assert [path for path, _ in server.requests] == ["/d%C3%A9p%C3%B4t/", "/d%C3%A9p%C3%B4t/%C3%A4.txt"]
    for _, headers in server.requests:
        assert base64.b64decode(headers["authorization"].partition(" ")[2]).decode() == "j\u00fcrgen:gew\u00fcrz"
        assert headers["x-key"].encode("latin-1").decode() == "schl\u00fcssel"
    assert [path.name for path in site.extract().iterdir()] == ["\u00e4.txt"]


def test_a_query_that_a_redirect_hands_on_is_sent_once(site: Site) -> None:
    def reply(path: str, _headers: dict[str, str], line: socket.socket) -> None:
        moves = path.startswith("/old")
        line.sendall(answer("302 Moved", location="/new?a=1&sig=2") if moves else answer("200 OK", b"content"))

    with hostile(reply) as server:
        site.build({"url": f"{server.url}/old?a=1", "name": "x", "query": "sig=2"})
    assert [path for path, _ in server.requests] == ["/old?a=1&sig=2", "/new?a=1&sig=2"]


def test_what_is_still_encrypted_passes_a_check_and_is_sent_to_nobody(site: Site) -> None:
    vaulted = {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n3362\n"}
    for secret in ({"username": "u", "password": vaulted}, {"token": vaulted}, {"headers": {"X-Key": vaulted}},
                   {"query": vaulted}, {"proxy_password": vaulted}, {"key_password": vaulted}):  # fmt: skip
        with pytest.raises(BuildError, match="is still encrypted"):
            site.build({"url": "http://127.0.0.1:1/a", **secret})


def test_no_redirect_leads_from_https_to_http(site: Site, server: Nginx) -> None:
    with pytest.raises(RefusedError, match="from https to http"):
        site.build({"url": f"{server.tls_url}/down/a.txt", "ca": server.ca})


def test_a_proxy_is_used_and_its_password_shown_to_it_alone(site: Site, served: Path) -> None:
    def proxy(path: str, headers: dict[str, str], line: socket.socket) -> None:
        if headers.get("proxy-authorization") != "Basic cDpwdw==":
            line.sendall(answer("407 Who"))
        else:
            line.sendall(answer("200 OK", f"for {path}".encode()))

    with hostile(proxy) as running:
        entry = {"url": "http://files.example/one", "proxy": running.url}
        with pytest.raises(RefusedError, match="407"):
            site.build(entry)
        site.build({**entry, "proxy_username": "p", "proxy_password": "pw"})
    assert (site.extract() / "one").read_bytes() == b"for http://files.example/one"


def test_the_environments_proxy_is_used_unless_none_is_wanted(
    site: Site, server: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UnreachableError):
        site.build(f"{server.url}/a.txt")
    site.build({"url": f"{server.url}/a.txt", "proxy": "none"})


# -- promises


def sums(served: Path, tool: str = "sha256sum", *words: str) -> bytes:
    names = sorted(str(path.relative_to(served)) for path in served.rglob("*") if path.is_file())
    return subprocess.run([tool, *words, *names], cwd=served, check=True, capture_output=True).stdout


def test_a_digest_holds_or_the_build_ends(site: Site, server: Nginx) -> None:
    digest = hashlib.sha256(FILES["a.txt"]).hexdigest()
    entry = {"url": f"{server.url}/a.txt", "digest": f"sha256:{digest}"}
    site.build(entry)
    server.requests()
    assert not site.build(entry)
    assert server.requests() == []
    with pytest.raises(BuildError, match="was promised"):
        site.build({**entry, "digest": f"sha512:{'0' * 128}"})


@pytest.mark.parametrize("how", [("sha256sum",), ("sha512sum", "--tag")])
def test_checksum_files_are_held_to(site: Site, server: Nginx, served: Path, how: tuple[str, ...]) -> None:
    (served / "SUMS").write_bytes(sums(served, *how))
    entry = {"url": f"{server.url}/", "checksums": "SUMS"}
    site.build(entry)
    assert same_content(served, site.extract()) == ""
    (served / "d/b.txt").write_bytes(b"x" * 20_000)
    with pytest.raises(BuildError, match=r"d/b.txt: its sha\d+ is"):
        site.build(entry)
    (served / "extra").write_bytes(b"")
    with pytest.raises(BuildError, match="no digest is promised for 'extra'"):
        site.build(entry)
    (served / "SUMS").write_bytes(b"d41d8cd98f00b204e9800998ecf8427e  empty\n")
    with pytest.raises(BuildError, match="MD5"):
        site.build(entry)


def sign(tmp_path: Path, *files: Path) -> None:
    """Write ``vendor.asc`` and ``other.asc``, two keyrings, and beside each file the vendor's signature."""
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
    try:
        for who in ("vendor", "other"):
            subprocess.run([*gpg, "--quick-generate-key", f"{who}@example.org", "ed25519", "sign"], check=True)
            armored = subprocess.run([*gpg, "--armor", "--export", who], check=True, capture_output=True).stdout
            (tmp_path / f"{who}.asc").write_bytes(armored)
        for file in files:
            signed = subprocess.run([*gpg, "-u", "vendor@example.org", "--armor", "--detach-sign", "--output", "-",
                                     str(file)], check=True, capture_output=True).stdout  # fmt: skip
            file.with_name(f"{file.name}.asc").write_bytes(signed)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


def test_a_checksum_file_and_a_signature_that_did_not_change_do_not_come_again(
    site: Site, server: Nginx, served: Path, tmp_path: Path
) -> None:
    (served / "SUMS").write_bytes(sums(served))
    sign(tmp_path, served / "SUMS")
    for path in (served / "SUMS", served / "SUMS.asc"):
        os.utime(path, (OLD_S, OLD_S))
    entry = {"url": f"{server.url}/", "checksums": "SUMS", "signature": "SUMS.asc"}
    entry["keyring"] = str(tmp_path / "vendor.asc")
    assert site.build(entry)
    server.requests()
    assert not site.build(entry)
    asked = [(request[1], request[2]) for request in server.requests()]
    assert sorted(asked) == [("/", "200"), ("/SUMS", "304"), ("/SUMS.asc", "304"), ("/d/", "200"), ("/d/e/", "200")]
    copies = len(list(site.scratch.glob("*.scratch/web-*")))
    (served / "SUMS").rename(served / "SUMS.new")
    (served / "SUMS.asc").rename(served / "SUMS.new.asc")
    site.build(entry | {"checksums": "SUMS.new", "signature": "SUMS.new.asc"})
    assert len(list(site.scratch.glob("*.scratch/web-*"))) == copies == 3
    (served / "SUMS.new").rename(served / "SUMS")
    (served / "SUMS.new.asc").rename(served / "SUMS.asc")
    (served / "SUMS").write_bytes(sums(served).replace(b"a", b"b"))
    with pytest.raises(TrustError, match="signature"):
        site.build(entry)


def test_signatures_are_verified(site: Site, server: Nginx, served: Path, tmp_path: Path) -> None:
    (served / "SUMS").write_bytes(sums(served))
    sign(tmp_path, served / "SUMS", served / "a.txt")
    whole = {"url": f"{server.url}/", "checksums": "SUMS", "signature": "SUMS.asc", "exclude": ["/a.txt.asc"]}
    single = {"url": f"{server.url}/a.txt", "signature": "a.txt.asc"}
    for entry in (whole, single):
        site.build({**entry, "keyring": str(tmp_path / "vendor.asc")})
        with pytest.raises(TrustError, match="signature does not hold"):
            site.build({**entry, "keyring": str(tmp_path / "other.asc")})
    (served / "a.txt").write_bytes(b"forged")
    (served / "SUMS").write_bytes(sums(served))
    for entry in (whole, single):
        with pytest.raises(TrustError, match="signature does not hold"):
            site.build({**entry, "keyring": str(tmp_path / "vendor.asc")})


# -- servers that mean no good


def index(*names: str) -> Any:
    def reply(path: str, _headers: dict[str, str], line: socket.socket) -> None:
        if path.endswith("/"):
            line.sendall(answer("200 OK", page(*names), content_type="text/html"))
        else:
            line.sendall(answer("200 OK", b"content"))

    return reply


@pytest.mark.parametrize("name", ["..%2f..%2fescape", "%2e%2e", "%2e%2e%2fx", "a%00b", "%2fetc%2fpasswd", "x" * 300])
def test_names_that_lead_out_are_refused(site: Site, tmp_path: Path, name: str) -> None:
    with hostile(index("ok", name)) as server, pytest.raises(BuildError, match="a name that cannot be taken"):
        site.build(f"{server.url}/")
    assert not list(tmp_path.rglob("*escape*"))


def test_links_to_other_places_are_no_files(site: Site) -> None:
    links = ("http://127.0.0.1:1/x", "//other/x", "/../../x", "../up", "javascript:x", "?C=M", "a/b", "#")
    with hostile(index("ok", *links)) as server:
        site.build(f"{server.url}/sub/")
    assert [path.name for path in site.extract().iterdir()] == ["ok"]


def test_json_names_that_lead_out_are_refused(site: Site) -> None:
    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        rows = b'[{"name":"../x","type":"file","size":1,"mtime":"Wed, 25 Nov 2020 07:00:00 GMT"}]'
        line.sendall(answer("200 OK", rows, content_type="application/json"))

    with hostile(reply) as server, pytest.raises(BuildError, match="a name that cannot be taken"):
        site.build(f"{server.url}/")


def test_an_endless_tree_ends(site: Site) -> None:
    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        line.sendall(answer("200 OK", page("again/"), content_type="text/html"))

    with hostile(reply) as server, pytest.raises(BuildError, match="deeper than 100"):
        site.build(f"{server.url}/")


@pytest.mark.parametrize("zipped", [False, True])
def test_an_endless_page_and_a_packed_one_end(site: Site, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ted_plugins.sources.website.MAX_PAGE_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20), 1) if zipped else b""

    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        if zipped:
            line.sendall(answer("200 OK", bomb, content_type="text/html", content_encoding="gzip"))
            return
        line.sendall(answer("200 OK", content_type="text/html", content_length=""))
        while True:
            line.sendall(b"<a href='x'>" * 10_000)

    with hostile(reply) as server, pytest.raises(BuildError, match="longer than 1048576 bytes, or endless"):
        site.build(f"{server.url}/")


def test_an_endless_file_ends(site: Site) -> None:
    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        line.sendall(answer("200 OK", content_length=""))
        while True:
            line.sendall(bytes(100_000))

    with hostile(reply) as server, pytest.raises(BuildError, match="more than 3000000 bytes"):
        site.build(f"{server.url}/endless", max_bytes="3MB")


@pytest.mark.parametrize("length", ["100", "99999999999999999999999"])
def test_a_wrong_length_is_no_file(site: Site, length: str) -> None:
    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        line.sendall(answer("200 OK", b"x" * 50, content_length=length))

    with hostile(reply) as server, pytest.raises(TransferError):
        site.build(f"{server.url}/short")
    assert [list(files.iterdir()) for files in site.mirrors()] == [[]]


def test_a_size_that_the_listing_belies_is_the_servers_word(site: Site) -> None:
    """The page says 7 bytes, the answer says 50 and has them: it changed in between."""
    with hostile(lambda path, _headers, line: line.sendall(
        answer("200 OK", page("f") if path == "/" else b"x" * 50, content_type="text/html")
    )) as server:  # fmt: skip
        site.build(f"{server.url}/")
    assert (site.extract() / "f").read_bytes() == b"x" * 50


@pytest.mark.parametrize("kept", [False, True])
def test_a_date_that_fits_into_no_header_is_no_version(site: Site, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one break a build that an earlier ted kept."""
    odd = "Wed, 25 Nov 2020 07:00:00 GMT (caf\xe9)"

    def serve(_path: str, headers: dict[str, str], connection: socket.socket) -> None:
        assert "if-modified-since" not in headers
        connection.sendall(answer("200 OK", b"F", last_modified=odd))

    with hostile(serve) as server:
        with monkeypatch.context() as patch:
            if kept:
                patch.setattr("ted_plugins.sources.website._version", lambda _head: odd)
            site.build(f"{server.url}/f")
        site.build(f"{server.url}/f")
        assert len(server.requests) == 2
    assert (site.extract() / "f").read_bytes() == b"F"


def test_headers_without_end_end(site: Site) -> None:
    def reply(_path: str, _headers: dict[str, str], line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            line.sendall(b"X-Y: " + b"z" * 500 + b"\r\n")

    with hostile(reply) as server, pytest.raises(TransferError):
        site.build(f"{server.url}/x")


def test_a_header_made_to_be_read_slowly_is_not(site: Site) -> None:
    blanks = f"x{' ' * 90_000}y"

    def serve(_path: str, _headers: dict[str, str], connection: socket.socket) -> None:
        connection.sendall(answer("200 OK", b"content", last_modified=blanks))

    with hostile(serve) as server:
        began_s = time.process_time()
        site.build(f"{server.url}/file")
        assert time.process_time() - began_s < 5
    assert (site.extract() / "file").read_bytes() == b"content"


def test_a_file_that_vanishes_between_listing_and_fetch_is_told(site: Site) -> None:
    def reply(path: str, _headers: dict[str, str], line: socket.socket) -> None:
        body = answer("200 OK", page("gone"), content_type="text/html") if path == "/" else answer("404 Not Found")
        line.sendall(body)

    with hostile(reply) as server, pytest.raises(SourceChangedError, match="was listed, and is not there"):
        site.build(f"{server.url}/")


BIG = os.urandom(2 << 20)
BIGGER = BIG[::-1] + b"more"


def cutting(how: str) -> Any:
    """A server that cuts the first answer, and goes on in a way of its own when asked to."""
    first = [True]
    known = {"etag": '"one"', "last_modified": "Wed, 25 Nov 2020 07:00:00 GMT", "date": "Wed, 25 Nov 2026 07:00:00 GMT"}

    def reply(_path: str, headers: dict[str, str], line: socket.socket) -> None:
        if first[0]:
            first[0] = False
            line.sendall(answer("200 OK", BIG, **known)[: 3 << 19])
            return
        offset = int(headers["range"].removeprefix("bytes=").removesuffix("-")) if "range" in headers else 0
        if "range" in headers:
            assert headers["if-range"] == '"one"'
        changed = known | {"etag": '"two"'}
        span = f"bytes {offset}-{len(BIG) - 1}/{len(BIG)}"
        if not offset or how == "200":
            line.sendall(answer("200 OK", BIG if how == "right" else BIGGER, **changed))
        elif how == "right":
            line.sendall(answer("206 Partial", BIG[offset:], content_range=span, **known))
        elif how == "other etag":
            line.sendall(answer("206 Partial", BIGGER[offset : len(BIG)], content_range=span, **changed))
        elif how == "other offset":
            other = f"bytes {offset + 1}-{len(BIG) - 1}/{len(BIG)}"
            line.sendall(answer("206 Partial", BIGGER[offset + 1 : len(BIG)], content_range=other, **known))
        elif how == "no range":
            line.sendall(answer("206 Partial", BIGGER[offset : len(BIG)], **known))
        elif how == "416":
            line.sendall(answer("416 No"))

    return reply


@pytest.mark.parametrize("how", ["right", "200", "other etag", "other offset", "no range", "416"])
def test_a_part_of_another_version_is_never_joined(site: Site, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with hostile(cutting(how)) as server:
        site.build(f"{server.url}/big", fetch_retries=1)
        asked = [headers.get("range") for _, headers in server.requests]
    assert (site.extract() / "big").read_bytes() == (BIG if how == "right" else BIGGER)
    assert asked[1] is not None
    assert len(asked) == (2 if how in {"right", "200"} else 3)


def test_a_kill_in_the_middle_is_gone_on_with(site: Site, server: Nginx, served: Path) -> None:
    fill(served, {"big.bin": os.urandom(1 << 20)} | {f"many/{n}": b"%d" % n for n in range(200)})
    for delay_s in (0.3, 0.6, 1.2):
        child = os.fork()
        if child == 0:
            try:
                site.build(f"{server.url}/slow/", parallel=2)
            finally:
                os._exit(0)
        time.sleep(delay_s)
        os.kill(child, 9)
        os.waitpid(child, 0)
    site.build(f"{server.url}/slow/", parallel=2)
    assert same_content(served, site.extract()) == ""


# -- options


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"url": "http://me:canary@host/x"}, "an address holds no user or password"),
        ({"url": "ftp://host/x"}, "is no address"), ({"url": "file:///etc/passwd"}, "is no address"),
        ({"url": "http://host/../x"}, "no '..'"), ({"url": "http://host"}, "use name"),
        ({"url": "http://host/x", "digest": "sha256:00"}, "is no digest"),
        ({"url": "http://host/", "name": "x"}, "for one file"),
        ({"url": "http://host/x", "include": ["x"]}, "are for directories"),
        ({"url": "http://host/x", "password": "canary"}, "needs a username"),
        ({"url": "http://host/x", "username": "u", "token": "canary"}, "not both"),
        ({"url": "http://host/x", "username": "u", "password": "canary", "password_env": "X"}, "in one way only"),
        ({"url": "http://host/x", "signature": "x.asc"}, "belong together"),
        ({"url": "http://host/x", "headers": {"a b": "canary"}}, "no name of a header"),
        ({"url": "http://host/x", "proxy": "http://me:canary@proxy"}, "an address holds no user"),
        ({"url": "http://host/x", "pasword": "canary"}, "did you mean 'password'"),
        ({"url": "http://host/x", "password": ["canary"]}, "password"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_told_without_secrets(entry: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionsError) as refused:
        plugins.validate_options("http", {"targets": [{"path": "/x", "from": [entry]}]})
    assert text in refused.value.message
    import traceback

    assert "canary" not in "".join(traceback.format_exception(refused.value)) + str(refused.value.hint)
