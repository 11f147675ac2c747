"""A sample of the HTTP type: a directory and single files of a web server of its own, in plain and by TLS."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import http.server
import ipaddress
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ted.testing import Bench, Sample, Variant

USER = "reader"


def sample(bench: Bench) -> Sample:
    """Return a distribution from a server that lists directories, and asks for what it is told to."""
    web = bench.sources / "web"
    bench.write(web / "app" / "tool", b"#!/bin/sh\necho tool\n")
    bench.write(web / "app" / "d" / "readme.txt", b"of the first revision\n")
    bench.write(web / "app" / "stays.txt", b"the same in every revision\n")
    bench.write(web / "app" / "rest.tmp", b"left over\n")
    bench.write(web / "one", b"a single file\n")
    bench.write(web / "extra" / "more.txt", b"more\n")
    write_sums(web / "app")
    server = bench.enter(serving(bench, web))
    one = f"{server.url}/{{}}/one".format
    entries: list[dict[str, Any]] = [
        {"url": f"{server.url}/plain/app/", "exclude": ["*.tmp"], "checksums": "SUMS"},
        {"url": one("basic"), "username": USER, "password": bench.secret, "name": "basic"},
        {"url": one("bearer"), "token": bench.secret, "name": "bearer"},
        {"url": one("header"), "headers": {"X-Key": bench.secret}, "name": "header"},
        {"url": one("query"), "query": f"key={bench.secret}", "name": "query"},
        {"url": "http://127.0.0.1:1/proxied/one", "proxy": server.url, "proxy_username": USER,
         "proxy_password": bench.secret, "name": "proxied"},
        {"url": f"{server.tls_url}/mine/one", "ca": server.ca, "certificate": server.certificate, "key": server.key,
         "key_password": bench.secret, "name": "mine"},
        {"url": one("plain"), "digest": digest(web / "one"), "name": "digest"},
        {"url": f"{server.url}/plain/extra/"},
    ]  # fmt: skip
    options = {
        "targets": [
            {"path": "%DEST_VOLUME%/app", "from": entries[:1], "synchronize": True},
            {"path": f"{bench.target}/etc", "from": entries[1:], "mode": "0640"},
        ],
        "fetch_retries": 0,
    }

    def change() -> None:
        bench.write(web / "app" / "d" / "readme.txt", b"of the second revision\n")
        bench.write(web / "app" / "new" / "file.txt", b"new\n")
        (web / "app" / "tool").unlink()
        write_sums(web / "app")

    def grow(size: int) -> None:
        bench.fill(web / "app" / "large.bin", size)
        write_sums(web / "app")

    return Sample(
        options, change, [bench.target / "app", bench.target / "etc"], variants=variants(bench, web, server),
        inert=INERT, vanish=server.stop, grow=grow,
    )  # fmt: skip


INERT = {
    "retries": "shows only in time: how often a locked file is tried",
    "on_locked": "shows only where another process holds a file of the target",
    "fetch_rate": "shows only in time",
    "parallel": "shows only in time",
    "fetch_retries": "shows only where a server fails now and then",
    "targets.from.timeout": "shows only in time",
    "targets.from.trust_listing": "shows only where a file changes without its size and time",
    "targets.from.signature": "needs a key to sign with",
    "targets.from.keyring": "needs a key to sign with",
}


def variants(bench: Bench, web: Path, server: Server) -> list[Variant]:
    """Return what makes each option show."""
    target = bench.target / "app"

    def foreign() -> None:
        bench.write(target / "stays.txt", b"somebody else's, and newer\n")

    def in_the_way() -> None:
        bench.write(bench.target / "etc" / "basic" / "theirs.txt", b"not ted's\n")

    def to_be_removed() -> None:
        bench.write(bench.target / "etc" / "old.conf", b"old\n")

    def empty() -> None:
        (web / "extra" / "more.txt").unlink()

    def spoil() -> None:
        (web / "app" / "SUMS").write_text(f"{'0' * 64}  stays.txt\n")

    def distrust() -> None:
        Path(server.ca).write_bytes(Path(server.other_ca).read_bytes())

    root: list[Any] = ["daemon", 1] if os.geteuid() == 0 else []
    first, more = "targets.0.from.0", "targets.1.from"
    return [
        Variant("targets.0.path", f"{bench.target}/another"),
        Variant("targets.0.exclude", ["tool"]),
        Variant("targets.0.synchronize", value=False, given=lambda: _add(bench, target / "stranger.txt")),
        Variant("targets.1.mode", "0644"),
        Variant("targets.1.remove", ["old.conf"], given=to_be_removed),
        *(Variant(f"targets.0.{each}", value) for each in ("owner", "group") for value in root),
        Variant("overwrite", "never", given=foreign),
        Variant("overwrite", "newer", given=foreign),
        Variant("on_error", "continue", given=in_the_way),
        Variant("allow_empty", value=True, sources=empty),
        Variant("verify", value=True),
        Variant("max_files", 1), Variant("max_bytes", 10),
        Variant(f"{first}.url", f"{server.url}/plain/app/d/"),
        Variant(f"{first}.depth", 0), Variant(f"{first}.include", ["*.txt"]), Variant(f"{first}.exclude", ["tool"]),
        Variant(f"{first}.checksums", Variant.LEFT_OUT, sources=spoil),
        Variant(f"{first}.password_file", "/nowhere"), Variant(f"{first}.password_env", "NOWHERE"),
        Variant(f"{first}.token_file", "/nowhere"), Variant(f"{first}.token_env", "NOWHERE"),
        Variant(f"{first}.proxy_password_file", "/nowhere"),
        Variant(f"{more}.0.username", "somebody"), Variant(f"{more}.0.password", "wrong"),
        Variant(f"{more}.0.name", "renamed"), Variant(f"{more}.1.token", "wrong"),
        Variant(f"{more}.2.headers", {"X-Key": "wrong"}), Variant(f"{more}.3.query", "key=wrong"),
        Variant(f"{more}.4.proxy", "none"), Variant(f"{more}.4.proxy_username", "somebody"),
        Variant(f"{more}.4.proxy_password", "wrong"),
        Variant(f"{more}.5.ca", Variant.LEFT_OUT), Variant(f"{more}.5.verify_tls", value=False, sources=distrust),
        Variant(f"{more}.5.certificate", Variant.LEFT_OUT), Variant(f"{more}.5.key", Variant.LEFT_OUT),
        Variant(f"{more}.5.key_password", "wrong"),
        Variant(f"{more}.6.digest", f"sha256:{'0' * 64}"),
    ]  # fmt: skip


def _add(bench: Bench, path: Path) -> None:
    bench.write(path, b"somebody else's\n")


def write_sums(directory: Path) -> None:
    """Write the checksum file of a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "SUMS")
    lines = [f"{digest(path).partition(':')[2]}  {path.relative_to(directory)}\n" for path in paths]
    (directory / "SUMS").write_text("".join(lines))


def digest(path: Path) -> str:
    """Return a file's digest as options have it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


# --- the server ------------------------------------------------------------------------------------------------------


class Server:
    """A web server on the loopback address, in plain and by TLS."""

    def __init__(self, bench: Bench, web: Path) -> None:
        self.ca, self.other_ca = (str(bench.aside / name) for name in ("ca.pem", "other.pem"))
        self.certificate, self.key = str(bench.aside / "client.pem"), str(bench.aside / "client.key")
        make_certificates(bench)
        handler = functools.partial(_Handler, web, bench.secret)
        self._plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._tls = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(bench.aside / "server.pem", bench.aside / "server.key")
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(self.ca)
        self._tls.socket = context.wrap_socket(self._tls.socket, server_side=True, do_handshake_on_connect=False)
        self._threads = [threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
                         for each in (self._plain, self._tls)]  # fmt: skip
        for each in self._threads:
            each.start()
        self.url = f"http://127.0.0.1:{self._plain.server_address[1]}"
        self.tls_url = f"https://127.0.0.1:{self._tls.server_address[1]}"

    def stop(self) -> None:
        """End it; a second time does nothing."""
        threads, self._threads = self._threads, []
        for server, thread in zip((self._plain, self._tls), threads, strict=False):
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def serving(bench: Bench, web: Path) -> Iterator[Server]:
    """Yield a server of what is in ``web``."""
    server = Server(bench, web)
    try:
        yield server
    finally:
        server.stop()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves files and lists directories below a first part of the path that says what to ask for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, web: Path, secret: str, *arguments: Any) -> None:
        self._web, self._secret = web, secret
        super().__init__(*arguments)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        parts = urlsplit(self.path)
        face, _, rest = unquote(parts.path).lstrip("/").partition("/")
        path = self._web / rest
        if not self._may(face, parts.query):
            self._answer(407 if face == "proxied" else 401)
        elif path.is_dir():
            rows = [self._row(each) for each in sorted(path.iterdir())]
            self._answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        elif not path.is_file():
            self._answer(404)
        else:
            self._send(path)

    def _may(self, face: str, query: str) -> bool:
        basic = "Basic " + base64.b64encode(f"{USER}:{self._secret}".encode()).decode()
        heard = self.headers
        faces: dict[str, Callable[[], bool]] = {
            "plain": lambda: True,
            "basic": lambda: heard["Authorization"] == basic,
            "bearer": lambda: heard["Authorization"] == f"Bearer {self._secret}",
            "header": lambda: heard["X-Key"] == self._secret,
            "query": lambda: query == f"key={self._secret}",
            "proxied": lambda: heard["Proxy-Authorization"] == basic,
            "mine": lambda: isinstance(self.connection, ssl.SSLSocket) and bool(self.connection.getpeercert()),
        }
        return face in faces and faces[face]()

    def _row(self, path: Path) -> dict[str, Any]:
        status, is_directory = path.stat(), path.is_dir()
        row = {"name": path.name, "type": "directory" if is_directory else "file",
               "mtime": formatdate(int(status.st_mtime), usegmt=True)}  # fmt: skip
        return row if is_directory else row | {"size": status.st_size}

    def _send(self, path: Path) -> None:
        status = path.stat()
        fields = {"ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
                  "Last-Modified": formatdate(int(status.st_mtime), usegmt=True)}  # fmt: skip
        if self.headers["If-None-Match"] == fields["ETag"]:
            self._answer(304, fields=fields)
            return
        self.send_response(200)
        for name, value in {**fields, "Content-Length": str(status.st_size)}.items():
            self.send_header(name, value)
        self.end_headers()
        with path.open("rb") as file:
            while piece := file.read(1 << 16):
                self.wfile.write(piece)

    def _answer(self, status: int, body: bytes = b"", fields: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(fields or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def make_certificates(bench: Bench) -> None:
    """Write an authority, another one, and a server's and a client's certificate; the client's key has a password."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "other", "server", "client")}
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=365)
    for who, key in keys.items():
        issuer = who if who == "other" else "ca"
        common, above = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (who, issuer))
        builder = (
            x509.CertificateBuilder().subject_name(common).issuer_name(above).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(began)
            .not_valid_after(began + datetime.timedelta(days=7300))
            .add_extension(x509.BasicConstraints(who == issuer, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(_LOOPBACK)]), critical=False)
        )  # fmt: skip
        signed = builder.sign(keys[issuer], hashes.SHA256())
        (bench.aside / f"{who}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        locked = serialization.BestAvailableEncryption(bench.secret.encode())
        (bench.aside / f"{who}.key").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            locked if who == "client" else serialization.NoEncryption(),
        ))  # fmt: skip


_LOOPBACK = ipaddress.ip_address("127.0.0.1")
