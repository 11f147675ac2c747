"""Real FTP and SSH servers on the loopback address: own configuration, own directories, own ports, ended by id.

Run as a program this module is an FTP server that knows MLSD (pyftpdlib), for vsftpd does not.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet import free_port

ANSWERS_WITHIN_S = 15.0
PASSWORD = "canary-Xyzzy-4711"
USER = "shop"
SERVED = "/mnt"
"""Where a server that runs in a mount namespace has its files: every user can reach it."""
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh"


def program(name: str, package: str) -> str:
    """Return where a server's program is."""
    found = shutil.which(name, path=_PATH)
    assert found, f"the tests need {name}: apt-get install {package} (scripts/test-packages does)"
    return found


def certificate(directory: Path, names: tuple[str, ...] = ("127.0.0.1", "::1", "localhost")) -> tuple[Path, Path]:
    """Make a self-signed certificate; return its file and the one with the key in it too."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ted test server")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for name in names:
        with suppress(ValueError):
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        alternatives.append(x509.DNSName(name))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    shown = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "server.crt").write_bytes(shown)
    (directory / "server.pem").write_bytes(shown + secret)
    (directory / "server.pem").chmod(0o600)
    return directory / "server.crt", directory / "server.pem"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += [*_children(int(child)), int(child)]
    return found


def in_own_machine(root: Path, files: Path, *command: str) -> list[str]:
    """Return what runs a command where ``files`` lie at ``SERVED`` and ``USER`` with ``PASSWORD`` is known.

    It is a mount namespace: users, passwords and PAM rules lie over the machine's own, and nothing of it is changed.
    """
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = [f"mount --bind '{files}' {SERVED}"]
    for path, added in (
        ("/etc/passwd", f"{USER}:x:64321:65534:test:{SERVED}:/bin/sh\n"),
        ("/etc/shadow", f"{USER}:{hashed}:19000:0:99999:7:::\n"),
        ("/etc/pam.d/vsftpd", "auth required pam_unix.so\naccount required pam_unix.so\n"),
    ):
        mine = root / Path(path).name
        mine.write_text(added if "pam.d" in path else Path(path).read_text() + added)
        mine.chmod(0o600 if "shadow" in path else 0o644)
        lines.append(f"[ ! -e {path} ] || mount --bind '{mine}' {path}")
    script = "; ".join([*lines, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *command]


class Server:
    """One process that listens on a port of the loopback address."""

    def __init__(self, address: str = "127.0.0.1", port: int | None = None) -> None:
        self.address = address
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self, command: list[str], said: Path, stdin: bytes | None = None) -> None:
        with said.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, stdout=output, stderr=output
            )
        if stdin is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(stdin)
            self._process.stdin.close()
        deadline_s = time.monotonic() + ANSWERS_WITHIN_S
        while True:
            with suppress(OSError), socket.create_connection((self.address, self.port), timeout=1) as probe:
                probe.settimeout(ANSWERS_WITHIN_S)
                return
            assert self._process.poll() is None, said.read_text()
            assert time.monotonic() < deadline_s, f"no answer on port {self.port}: {said.read_text()}"
            time.sleep(0.02)

    def sessions(self) -> list[int]:
        """Return the processes that serve somebody now."""
        return _children(self._process.pid) if self._process else []

    def close(self) -> None:
        """End the server and its sessions."""
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.terminate()
        for pid in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Vsftpd(Server):
    """A vsftpd that serves ``files``: to anonymous, or to ``USER`` with ``PASSWORD``.

    Args:
        root: Where its configuration and its log are put.
        files: What it serves.
        anonymous: Serve anonymous (else ``USER``).
        tls: None, ``explicit`` or ``implicit``; the certificate is in ``ca_file``.
        settings: Of vsftpd.conf.
    """

    def __init__(
        self, root: Path, files: Path, *, anonymous: bool = True, tls: str | None = None, address: str = "127.0.0.1",
        port: int | None = None, **settings: str | int,
    ) -> None:  # fmt: skip
        assert os.geteuid() == 0, "vsftpd needs root: run the tests as root"
        super().__init__(address, port)
        self.ca_file: Path | None = None
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / "vsftpd.log"
        (root / "empty").mkdir(exist_ok=True)
        chosen: dict[str, str | int] = {
            "listen": "NO" if ":" in address else "YES", "listen_ipv6": "YES" if ":" in address else "NO",
            "listen_address6" if ":" in address else "listen_address": address, "listen_port": self.port,
            "background": "NO", "seccomp_sandbox": "NO", "secure_chroot_dir": str(root / "empty"),
            "anonymous_enable": "YES" if anonymous else "NO", "local_enable": "NO" if anonymous else "YES",
            "anon_root": SERVED, "local_root": SERVED, "no_anon_password": "NO", "write_enable": "NO",
            "chroot_local_user": "YES", "allow_writeable_chroot": "YES", "passwd_chroot_enable": "NO",
            "xferlog_enable": "YES", "log_ftp_protocol": "YES", "vsftpd_log_file": str(self.log),
            "port_enable": "YES", "connect_from_port_20": "NO", "delay_failed_login": 0, "max_login_fails": 1,
            "hide_ids": "YES", "anon_world_readable_only": "NO",
        }  # fmt: skip
        if tls:
            self.ca_file, both = certificate(root)
            chosen |= {
                "ssl_enable": "YES", "rsa_cert_file": str(both), "rsa_private_key_file": str(both),
                "allow_anon_ssl": "YES", "force_local_logins_ssl": "YES", "force_local_data_ssl": "YES",
                "force_anon_logins_ssl": "YES", "force_anon_data_ssl": "YES", "require_ssl_reuse": "YES",
                "ssl_ciphers": "HIGH", "implicit_ssl": "YES" if tls == "implicit" else "NO",
            }  # fmt: skip
        chosen |= settings
        (root / "vsftpd.conf").write_text("".join(f"{key}={value}\n" for key, value in chosen.items()))
        self._start(in_own_machine(root, files, program("vsftpd", "vsftpd"), str(root / "vsftpd.conf")), root / "said")

    def commands(self) -> list[str]:
        """Return what clients asked so far, as ``RETR name``; passwords are not in the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return re.findall(r'FTP command: Client "[^"]*", "([^"]*)"', text)

    def downloads(self) -> list[str]:
        """Return the names of the files whose download was begun."""
        return [command[5:] for command in self.commands() if command.startswith("RETR ")]


class Mlsd(Server):
    """An FTP server that knows MLSD: pyftpdlib, in a process of its own."""

    def __init__(self, root: Path, files: Path, **settings: Any) -> None:
        super().__init__()
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / "commands.log"
        chosen = {"port": self.port, "files": str(files), "log": str(self.log), **settings}
        self._start([sys.executable, __file__], root / "said", json.dumps(chosen).encode())

    def commands(self) -> list[str]:
        """Return what clients asked so far, as ``RETR /name``."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def downloads(self) -> list[str]:
        """Return the paths of the files whose download was begun."""
        return [command[5:] for command in self.commands() if command.startswith("RETR ")]


class Sftp(Server):
    """An sshd that serves SFTP and nothing else, with a host key and a user's key of its own.

    Args:
        root: Where its configuration and its log are put.
        passwords_for: Take ``USER`` with ``PASSWORD``, who sees these files at ``SERVED``; else the key.
        settings: Of sshd_config.
    """

    def __init__(self, root: Path, *, passwords_for: Path | None = None, **settings: str) -> None:
        super().__init__()
        sshd = program("sshd", "openssh-server")
        root.mkdir(parents=True, exist_ok=True)
        for name in ("host", "user", "other"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)], check=True, timeout=30
            )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.key_file = root / "user"
        self.other_key_file = root / "other"
        self.log = root / "sshd.log"
        self.requests = root / "requests.log"
        served = (
            "internal-sftp"
            if passwords_for
            else f"exec {program('sftp-server', 'openssh-sftp-server')} -e -l INFO 2>>{self.requests}"
        )
        (root / "authorized").write_text((root / "user.pub").read_text())
        self.known_hosts_file = root / "known_hosts"
        host = " ".join((root / "host.pub").read_text().split()[:2])
        self.known_hosts_file.write_text(f"[127.0.0.1]:{self.port} {host}\n")
        self.wrong_hosts_file = root / "wrong_hosts"
        other = " ".join((root / "other.pub").read_text().split()[:2])
        self.wrong_hosts_file.write_text(f"[127.0.0.1]:{self.port} {other}\n")
        chosen = {
            "Port": str(self.port), "ListenAddress": "127.0.0.1", "HostKey": str(root / "host"),
            "AuthorizedKeysFile": str(root / "authorized"), "PidFile": "none", "StrictModes": "no", "UsePAM": "no",
            "PasswordAuthentication": "yes" if passwords_for else "no",
            "KbdInteractiveAuthentication": "no", "PermitRootLogin": "yes",
            "Subsystem": f"sftp {served}", "LogLevel": "VERBOSE", "MaxStartups": "100", "MaxSessions": "20", **settings,
        }  # fmt: skip
        (root / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in chosen.items()))
        command = [sshd, "-D", "-e", "-f", str(root / "sshd_config")]
        if passwords_for is not None:
            assert os.geteuid() == 0, "users of its own need root: run the tests as root"
            command = in_own_machine(root, passwords_for, *command)
        self._start(command, self.log)

    def downloads(self) -> list[str]:
        """Return the paths of the files that were opened to be read, in order."""
        return re.findall(r'open "(.*)" flags READ', self._said())

    def bytes_read(self) -> int:
        """Return how many bytes of files were sent so far, as the server counts when it closes them."""
        return sum(int(count) for count in re.findall(r"bytes read (\d+) written", self._said()))

    def _said(self) -> str:
        return self.requests.read_text(errors="replace") if self.requests.exists() else ""


def _serve_mlsd() -> None:
    import logging

    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    chosen = json.load(sys.stdin)
    logging.basicConfig(level=logging.ERROR)
    commands = open(chosen["log"], "a", buffering=1)  # noqa: SIM115 -- as long as the process

    class Handler(FTPHandler):
        def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
            commands.write(f"{cmd} {'' if cmd == 'PASS' else arg}".strip() + "\n")
            super().pre_process_command(line, cmd, arg)

    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(chosen["files"])
    authorizer.add_user(USER, PASSWORD, chosen["files"], perm="elr")
    Handler.authorizer = authorizer
    if chosen.get("without"):
        Handler.proto_cmds = {name: own for name, own in Handler.proto_cmds.items() if name not in chosen["without"]}
    FTPServer(("127.0.0.1", chosen["port"]), Handler).serve_forever()


if __name__ == "__main__":
    _serve_mlsd()
