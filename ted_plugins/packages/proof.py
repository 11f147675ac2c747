"""Detached and clear-text signatures, checked by gpgv against given keys and no others."""

from __future__ import annotations

import base64
import binascii
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ted.errors import TedError
from ted_plugins.packages.programs import environment, found, said
from ted_plugins.sources.checksums import outlived

MAX_KEY_BYTES = 1 << 20
_TIMEOUT_S = 600.0
_MAX_LINE_BYTES = 16 * 1024
_BEGIN, _END = b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----END PGP PUBLIC KEY BLOCK-----"


def keyring(keys: Sequence[bytes]) -> bytes:
    """Return keys, armored or not, as one binary keyring.

    Raises:
        ValueError: One is no key.
    """
    return b"".join(packets for key in keys for packets in _packets(key))


def _packets(key: bytes) -> Iterable[bytes]:
    if _BEGIN not in key:
        if not key[:1] or not key[0] & 0x80:
            raise ValueError("it is no public key")
        yield key
        return
    for block in key.split(_BEGIN)[1:]:
        armored, found_end, _ = block.partition(_END)
        lines = armored.replace(b"\r", b"").split(b"\n")
        start = lines.index(b"", 1) if b"" in lines[1:] else 0  # headers end with an empty line
        body = b"".join(line.strip() for line in lines[start:] if not line.startswith(b"="))
        try:
            yield base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise ValueError("it is no public key") from error
        if not found_end:
            raise ValueError("it ends too early")


def check(
    keys: Sequence[bytes], signature: bytes, data: Iterable[bytes] | None, error: type[TedError], what: str
) -> None:
    """Check a signature: detached over ``data``, or clear-text with ``data`` ``None``.

    Raises:
        error: It does not hold; ``what`` is named.
    """
    if not found("gpgv"):
        raise error(f"{what}: its signature cannot be checked without gpgv", hint="install it (package gpgv or gnupg2)")
    try:
        ring = keyring(keys)
    except ValueError as told:
        raise error(f"{what}: a key cannot be read: {told}", hint="give files that `gpg --export` wrote") from told
    with tempfile.TemporaryDirectory(prefix="ted-keys-") as directory:
        (Path(directory) / "ring.gpg").write_bytes(ring)
        (Path(directory) / "signature").write_bytes(signature)
        words = [
            "gpgv", "--weak-digest", "SHA1", "--homedir", directory, "--keyring", f"{directory}/ring.gpg",
            "--status-fd", "1", f"{directory}/signature",
        ]  # fmt: skip
        status, errors = Path(directory) / "status", Path(directory) / "errors"  # a pipe that is full holds gpgv up
        with status.open("wb") as out, errors.open("wb") as err, subprocess.Popen(
            words + (["-"] if data is not None else []), stdin=subprocess.PIPE, stdout=out, stderr=err,
            env=environment(),
        ) as process:  # fmt: skip
            assert process.stdin is not None
            with _ended_in_time(process) as late:
                with suppress(BrokenPipeError):
                    for chunk in data or ():
                        process.stdin.write(chunk)
                with suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
        if late.is_set():
            raise error(f"{what}: its signature cannot be checked: gpgv did not end within {_TIMEOUT_S:g} s",
                        hint="is the machine overloaded, or the file very large?")  # fmt: skip
        why = outlived(status.read_bytes())
        with errors.open("rb") as file:
            told_bytes = file.read(4000)
    if process.returncode != 0:
        raise error(f"{what}: its signature does not hold: {said(told_bytes.decode('utf-8', 'replace'))}",
                    hint="is it signed, and by one of the keys given?")  # fmt: skip
    if why is not None:
        raise error(f"{what}: its signature does not hold: {why}", hint="give the signer's key as it is now")


@contextmanager
def _ended_in_time(process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kill a process that does not end; what is yielded says whether that was needed."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_TIMEOUT_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def clear_text(document: bytes) -> bytes:
    """Return what a clear-text signed document says; call ``check`` with it first.

    Strict, so that nothing is read here that gpgv did not see: it strips blanks at the end of a line, looks at no more
    than the first 20,000 bytes of one, and ends the text at any line that begins with dashes.

    Raises:
        ValueError: It is none, or not as gpg writes it.
    """
    begin = b"-----BEGIN PGP SIGNED MESSAGE-----\n"
    document = document.replace(b"\r\n", b"\n")
    if not document.startswith(begin):
        raise ValueError("it is not signed")
    head, _, rest = (b"\n" + document.removeprefix(begin)).partition(b"\n\n")
    if not all(line.startswith(b"Hash: ") for line in head.split(b"\n") if line):
        raise ValueError("it has headers that a signed text has not")
    body, found_signature, _ = rest.partition(b"\n-----BEGIN PGP SIGNATURE-----\n")
    if not found_signature:
        raise ValueError("it ends too early")
    lines = body.split(b"\n")
    if any(len(line) > _MAX_LINE_BYTES for line in lines):
        raise ValueError(f"it has a line of more than {_MAX_LINE_BYTES} bytes")
    if any(line.startswith(b"-") and not line.startswith(b"- ") for line in lines):
        raise ValueError("it holds more than one signed message")
    return b"\n".join(line.removeprefix(b"- ") for line in lines)
