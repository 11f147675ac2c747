"""Web servers for tests: nginx with several faces of one directory, and servers that mean no good."""

from __future__ import annotations

import datetime
import ipaddress
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet import free_port

USER, PASSWORD = "reader", "open sesame 100%"

_CONF = """
pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; daemon off; master_process off;
events {{ worker_connections 512; }}
http {{
    default_type application/octet-stream; keepalive_requests 100000; sendfile on; tcp_nodelay on;
    log_format told '$request_method $request_uri $status $request_length $bytes_sent '
                    '"$http_range" "$http_cookie$http_authorization"';
    access_log {root}/access.log told;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    server {{
        listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl; server_name localhost;
        ssl_certificate {root}/server.pem; ssl_certificate_key {root}/server.key;
        ssl_client_certificate {root}/ca.pem; ssl_verify_client optional;
        root {served}; autoindex on;
        location /json/ {{ alias {served}/; autoindex_format json; }}
        location /private/ {{ alias {served}/; auth_basic "private"; auth_basic_user_file {root}/passwords; }}
        location /bearer/ {{ alias {served}/; if ($http_authorization != "Bearer {token}") {{ return 403; }} }}
        location /mine/ {{ alias {served}/; if ($ssl_client_verify != SUCCESS) {{ return 403; }} }}
        location /zipped/ {{ alias {served}/; gzip on; gzip_types *; gzip_min_length 1; }}
        location /slow/ {{ alias {served}/; limit_rate 400k; }}
        location /closed/ {{ return 403; }}
        location /to/ {{ rewrite ^/to/(.*)$ /$1 redirect; }}
        location /round/ {{ return 302 /round/; }}
        location /away/ {{ rewrite ^/away/(.*)$ http://localhost:{port}/private/$1 redirect; }}
        location /down/ {{ rewrite ^/down/(.*)$ http://127.0.0.1:{port}/$1 redirect; }}
        location /local/ {{ return 302 file:///etc/passwd; }}
    }}
}}
"""
TOKEN = "tok-3n"


class Nginx:
    """An nginx that serves ``served``, also below ``/json/``, ``/private/`` and other places (see ``_CONF``)."""

    def __init__(self, root: Path, served: Path) -> None:
        self.root, self.served = root, served
        self.port, self.tls = free_port(), free_port()
        root.mkdir(parents=True, exist_ok=True)
        make_authority(root)
        (root / "passwords").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        conf = _CONF.format(root=root, served=served, port=self.port, tls=self.tls, token=TOKEN)
        (root / "nginx.conf").write_text(conf)
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        with (root / "stderr").open("wb") as said_to:
            self._process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-p", str(root)],
                                             stdin=subprocess.DEVNULL, stderr=said_to)  # fmt: skip
        deadline_s = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.tls), 1):
                return
            said = (root / "stderr").read_text()
            running = self._process.poll() is None and time.monotonic() < deadline_s
            assert running, f"nginx did not start: {said}"
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls}"

    @property
    def ca(self) -> str:
        return str(self.root / "ca.pem")

    def requests(self) -> list[list[str]]:
        """Return the requests since the last call: method, address, status, bytes of the request and of the answer."""
        log = self.root / "access.log"
        time.sleep(0.05)
        lines = log.read_text().splitlines()
        log.write_bytes(b"")
        return [line.split(" ", 5) for line in lines]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@contextmanager
def nginx(root: Path, served: Path) -> Iterator[Nginx]:
    """Yield an nginx that serves ``served``."""
    server = Nginx(root, served)
    try:
        yield server
    finally:
        server.close()


def make_authority(root: Path) -> None:
    """Write ca.pem, and server and client certificates of that authority with their keys."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .sign(authority, hashes.SHA256())
        )  # fmt: skip

    pem = serialization.Encoding.PEM
    (root / "ca.pem").write_bytes(certificate(name, authority, ca=True).public_bytes(pem))
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
        (root / f"{who}.pem").write_bytes(certificate(subject, key, ca=False).public_bytes(pem))
        (root / f"{who}.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )


Answer = Callable[[str, dict[str, str], socket.socket], None]


class Hostile:
    """A server that answers with whatever ``answer(path, headers, connection)`` sends, one request a connection."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := connection.recv(65536)):
                    return
                data += more
            first, *lines = data.decode("latin-1").split("\r\n")
            headers = {m[1].lower(): m[2] for line in lines if (m := re.match(r"([^:]+): *(.*)", line))}
            path = first.split(" ")[1]
            self.requests.append((path, headers))
            self._answer(path, headers, connection)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@contextmanager
def hostile(answer: Answer) -> Iterator[Hostile]:
    """Yield a server that answers so."""
    server = Hostile(answer)
    try:
        yield server
    finally:
        server.close()


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an answer of HTTP; ``content_length`` and others may be given, or else are as they should be."""
    fields = {"content_length": str(len(body)), "connection": "close"} | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def page(*names: str) -> bytes:
    """Return an index page as nginx writes it, with these addresses in it, none escaped."""
    rows = "".join(f'<a href="{name}">{name}</a>      25-Nov-2020 07:03       7\n' for name in names)
    return f'<html><body><pre><a href="../">../</a>\n{rows}</pre></body></html>'.encode()
