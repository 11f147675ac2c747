"""Who may talk: the realm's authority, a node's certificate, mutual TLS 1.3.

Rules:
 * A certificate names its node in one URI, ``ted:node:<name>``; addresses in it are for other programs.
   What counts between nodes is the name, whatever address a connection came from or went to.
 * Ed25519 throughout: the fewest bytes in a handshake (measured in ``docs/trust.md``).
 * A node makes its own key and a request (``ted realm request``); the key never leaves the node.
 * Issuing again what is already so changes nothing: same key, same addresses, a third of its life left.
 * TLS 1.3 only, both sides show a certificate, no session tickets (each would carry the peer's certificate).
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ted.errors import ConfigError, TrustError, UnknownNameError
from ted.trust import names
from ted.trust.files import locked, make_directory, read_bounded, replace_file

NODE_URI = "ted:node:"
NODE_LIFE = timedelta(days=825)
AUTHORITY_LIFE = timedelta(days=3650)

_SKEW = timedelta(hours=1)
_MAX_PEM_BYTES = 64 << 10
_DNS_RE = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_-]{1,63})*\.?")

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Issued:
    """A node's certificate, as issued; ``changed`` is False if it was issued before and still serves."""

    node: str
    certificate: bytes
    authority: bytes
    addresses: tuple[str, ...]
    expires_at: datetime
    changed: bool


@dataclass(frozen=True)
class Requested:
    """A node's request for a certificate; ``changed`` is False if key and request were there."""

    node: str
    csr: bytes
    changed: bool


class RealmAuthority:
    """The directory ``<config>/authority``: ``ca.key``, ``ca.pem``, ``issued/<node>/``."""

    def __init__(self, directory: Path, *, now: Clock = names.utc_now) -> None:
        self.directory = directory
        self._now = now

    def exists(self) -> bool:
        """Say whether there is an authority, complete."""
        return (self.directory / "ca.pem").is_file() and (self.directory / "ca.key").is_file()

    def create(self, name: str, *, check: bool = False) -> bool:
        """Make the authority of realm ``name``; False: it is there.

        Raises:
            ConfigError: The authority of another realm is there.
        """
        names.check_name("realm", name)
        if self.exists():
            held = common_name(self._certificate())
            if held != name:
                raise ConfigError(
                    f"{self.directory}: holds the authority of realm {held}, not of {name}",
                    hint="use that one, or another --config directory",
                )
            return False
        if not check:
            make_directory(self.directory, 0o700)
            with locked(self.directory):
                self._create(name)
        return True

    def certificate(self) -> bytes:
        """Return ``ca.pem``: what every node of the realm must hold.

        Raises:
            ConfigError: There is no authority.
        """
        pem = read_bounded(self.directory / "ca.pem", _MAX_PEM_BYTES)
        if pem is None:
            raise ConfigError(f"{self.directory}: no realm authority", hint="make it: ted realm create NAME")
        return pem

    def issue(
        self, node: str, addresses: Iterable[str] = (), *, into: Path | None = None, check: bool = False
    ) -> Issued:
        """Make key and certificate for ``node``: ``node.key``, ``node.pem`` and ``ca.pem`` in ``into``.

        Prefer ``issue_from_request``: with it the key never travels.

        Args:
            node: Its inventory name.
            addresses: Names and IP addresses it is reached by.
            into: By default ``issued/<node>`` below the authority.
            check: Change nothing; say what would be.
        """
        directory = into or self._issued(node)
        public = _held_public_key(directory / "node.key")
        if public is None:
            key = Ed25519PrivateKey.generate()
            public = key.public_key()
            if not check:
                make_directory(directory, 0o700)
                replace_file(directory / "node.key", _private_pem(key), mode=0o600)
        return self._issue(node, addresses, public, directory, check)

    def issue_from_request(
        self,
        node: str,
        csr: bytes,
        addresses: Iterable[str] | None = None,
        *,
        into: Path | None = None,
        check: bool = False,
    ) -> Issued:
        """Make a certificate for the key that ``csr`` (PEM) was made with.

        Args:
            node: The name it is issued for; the request must ask for the same.
            csr: What ``ted realm request`` wrote.
            addresses: Names and IP addresses; ``None`` takes those of the request.
            into: By default ``issued/<node>`` below the authority.
            check: Change nothing; say what would be.

        Raises:
            TrustError: Not a request, not signed by its own key, or for another node.
        """
        request = _parse_request(csr)
        asked = _node_of(request.extensions)
        if asked != node:
            raise TrustError(
                f"this request is for node {asked}, not for {node}",
                hint=f"on {node}: ted realm request {node}",
            )
        public = request.public_key()
        if not isinstance(public, Ed25519PublicKey):
            raise TrustError(f"{node}: the request's key is not Ed25519", hint=f"ted realm request {node}")
        wanted = _addresses_of(request.extensions) if addresses is None else addresses
        return self._issue(node, wanted, public, into or self._issued(node), check)

    # -- inside

    def _issued(self, node: str) -> Path:
        return self.directory / "issued" / names.check_name("node", node)

    def _certificate(self) -> x509.Certificate:
        return _parse_certificate(self.certificate(), self.directory / "ca.pem")

    def _create(self, name: str) -> None:
        key = _load_key(self.directory / "ca.key")
        if key is None:
            key = Ed25519PrivateKey.generate()
            replace_file(self.directory / "ca.key", _private_pem(key), mode=0o600)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            self._builder(subject, subject, key.public_key(), AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, None)
        )
        replace_file(self.directory / "ca.pem", certificate.public_bytes(Encoding.PEM))

    def _issue(
        self, node: str, addresses: Iterable[str], public: Ed25519PublicKey, directory: Path, check: bool
    ) -> Issued:
        names.check_name("node", node)
        wanted = tuple(sorted({str(_general_name(address).value) for address in addresses}))
        authority = self.certificate()
        held = read_bounded(directory / "node.pem", _MAX_PEM_BYTES)
        if held and (certificate := self._still_serves(held, node, wanted, public)):
            changed = read_bounded(directory / "ca.pem", _MAX_PEM_BYTES) != authority
        else:
            certificate, changed = self._sign(node, wanted, public), True
        pem = certificate.public_bytes(Encoding.PEM)
        if changed and not check:
            make_directory(directory, 0o700)
            replace_file(directory / "ca.pem", authority)
            replace_file(directory / "node.pem", pem)
        return Issued(node, pem, authority, wanted, certificate.not_valid_after_utc, changed)

    def _still_serves(
        self, pem: bytes, node: str, addresses: tuple[str, ...], public: Ed25519PublicKey
    ) -> x509.Certificate | None:
        try:
            certificate = _parse_certificate(pem, Path("node.pem"))
            certificate.verify_directly_issued_by(self._certificate())
            same = _node_of(certificate.extensions) == node and _public_bytes(
                certificate.public_key()
            ) == _public_bytes(public)
        except (TrustError, ValueError, TypeError, InvalidSignature):
            return None
        left = certificate.not_valid_after_utc - self._now()
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        serves = same and _addresses_of(certificate.extensions) == addresses and left > life / 3
        return certificate if serves else None

    def _sign(self, node: str, addresses: tuple[str, ...], public: Ed25519PublicKey) -> x509.Certificate:
        key = _load_key(self.directory / "ca.key")
        if key is None:
            raise ConfigError(f"{self.directory}: the authority's key is not here", hint="bring back ca.key")
        authority = self._certificate()
        if authority.not_valid_after_utc <= self._now():
            raise TrustError(
                f"the authority of realm {common_name(authority)} expired",
                hint="make a new realm and issue every node's certificate anew",
            )
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
        issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            self._builder(subject, authority.subject, public, NODE_LIFE)
            .add_extension(_alternative_names(node, addresses), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(issuer_identifier, critical=False)
            .sign(key, None)
        )

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey, life: timedelta
    ) -> x509.CertificateBuilder:
        now = self._now().replace(microsecond=0)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + life)
        )


class NodeIdentity:
    """The directory ``<config>/realm`` of a node: ``ca.pem``, ``node.pem``, ``node.key``."""

    def __init__(self, directory: Path, *, now: Clock = names.utc_now) -> None:
        self.directory = directory
        self._now = now

    def request(self, node: str, addresses: Iterable[str] = (), *, check: bool = False) -> Requested:
        """Make ``node.key`` and ``node.csr``; a key that is there is kept.

        Args:
            node: This node's inventory name.
            addresses: Names and IP addresses it is reached by.
            check: Change nothing; say what would be (the request returned is then for a key nobody keeps).
        """
        names.check_name("node", node)
        key = _load_key(self.directory / "node.key")
        wanted = tuple(sorted({str(_general_name(address).value) for address in addresses}))
        if key and (held := self._held_request(node, wanted, key)):
            return Requested(node, held, changed=False)
        made = key or Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        request = builder.add_extension(_alternative_names(node, wanted), critical=False).sign(made, None)
        csr = request.public_bytes(Encoding.PEM)
        if not check:
            make_directory(self.directory)
            if key is None:
                replace_file(self.directory / "node.key", _private_pem(made), mode=0o600)
            replace_file(self.directory / "node.csr", csr)
        return Requested(node, csr, changed=True)

    @property
    def name(self) -> str:
        """This node's name, as its certificate says it."""
        return _node_of(self._certificate().extensions)

    @property
    def expires_at(self) -> datetime:
        """When this node's certificate expires."""
        return self._certificate().not_valid_after_utc

    def check(self) -> None:
        """Return if the three files fit together and have not expired.

        Raises:
            TrustError: Naming the file, what is wrong and what now.
        """
        certificate = self._certificate()
        node = _node_of(certificate.extensions)
        mending = f"ted realm request {node}, have it issued (ted realm issue {node} --csr FILE), place node.pem"
        key = _load_key(self.directory / "node.key")
        if key is None or _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
            raise TrustError(
                f"{self.directory}: node.key is not the key of node.pem (certificate of {node})", hint=mending
            )
        ca_path = self.directory / "ca.pem"
        authority = _parse_certificate(self._read("ca.pem"), ca_path)
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise TrustError(
                f"{self.directory}: the certificate of {node} is not of realm {common_name(authority)}",
                hint=mending,
            ) from error
        if certificate.not_valid_after_utc <= self._now():
            raise TrustError(
                f"this node's certificate ({node}) expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
                hint=mending,
            )

    def server_context(self) -> ssl.SSLContext:
        """Return a context that serves this realm's nodes and nobody else.

        Raises:
            TrustError: See ``check``.
        """
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context that talks to this realm's nodes only; ask ``require_peer`` which one it is.

        Raises:
            TrustError: See ``check``.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        self.check()
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the node's name is checked instead: require_peer
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(self.directory / "ca.pem")
        context.load_cert_chain(self.directory / "node.pem", self.directory / "node.key")
        return context

    def _certificate(self) -> x509.Certificate:
        return _parse_certificate(self._read("node.pem"), self.directory / "node.pem")

    def _read(self, name: str) -> bytes:
        data = read_bounded(self.directory / name, _MAX_PEM_BYTES)
        if data is None:
            raise TrustError(
                f"{self.directory / name}: not here; this node cannot prove who it is",
                hint="ansible-playbook playbooks/install.yml, or by hand: ted realm request NODE here, "
                "ted realm issue NODE --csr FILE where the authority is",
            )
        return data

    def _held_request(self, node: str, addresses: tuple[str, ...], key: Ed25519PrivateKey) -> bytes | None:
        held = read_bounded(self.directory / "node.csr", _MAX_PEM_BYTES)
        try:
            request = _parse_request(held or b"")
            same = (
                _node_of(request.extensions) == node
                and _addresses_of(request.extensions) == addresses
                and _public_bytes(request.public_key()) == _public_bytes(key.public_key())
            )
        except TrustError:
            return None
        return held if same else None


# -- who is at the other end


def peer_name(peer: ssl.SSLObject | ssl.SSLSocket | Mapping[str, Any] | None) -> str:
    """Return the name of the node at the other end of a connection whose handshake is done.

    Args:
        peer: The connection, or what its ``getpeercert()`` returned.

    Raises:
        TrustError: It showed no certificate, or one that names no node or several.
    """
    shown: Any = peer.getpeercert() if isinstance(peer, ssl.SSLObject | ssl.SSLSocket) else peer
    if not shown:
        raise TrustError("the peer showed no certificate", hint="is it a ted node? both sides must use https")
    uris = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    nodes = [uri.removeprefix(NODE_URI) for uri in uris if uri.startswith(NODE_URI)]
    if len(nodes) != 1:
        raise TrustError(
            f"the peer's certificate names {len(nodes)} nodes instead of one",
            hint="issue it with: ted realm issue NODE",
        )
    return _checked(nodes[0])


def require_peer(peer: ssl.SSLObject | ssl.SSLSocket | Mapping[str, Any] | None, expected: str) -> None:
    """Return if the node at the other end is ``expected``.

    Raises:
        TrustError: It is another one; the message names both.
    """
    actual = peer_name(peer)
    if actual != expected:
        raise TrustError(
            f"{expected} was called and {actual} answered",
            hint=f"check ted_address of {expected}, or give that machine its own certificate "
            f"(ted realm request {expected})",
        )


def explain(error: ssl.SSLError, peer: str) -> TrustError:
    """Return the error of ours that says why a handshake with node ``peer`` failed.

    In TLS 1.3 a client learns at its first read that the server refused it: translate there too.
    """
    reason = (getattr(error, "verify_message", "") or error.reason or str(error)).lower().replace("_", " ")
    for words, what, now in _REASONS:
        if any(word in reason for word in words):
            return TrustError(what.format(peer=peer), hint=now.format(peer=peer))
    if isinstance(error, ssl.SSLCertVerificationError):
        return TrustError(f"{peer}: its certificate does not hold: {reason}", hint=_REISSUE.format(peer=peer))
    return TrustError(f"{peer}: no secure connection: {reason}", hint=_WHO_ANSWERS.format(peer=peer))


_REISSUE = (
    "on {peer}: ted realm request {peer}, then have it issued; or playbooks/install.yml --limit {peer}"
    " (or is it another agent that answers at that address and port?)"
)
_WHO_ANSWERS = (
    "is it the agent of {peer} that answers at its ted_address and ted_port? `ss -ltnp` there tells who listens;"
    " its ted_transport must be the same as here"
)
_OWN = "issue this node's certificate anew: ted realm request NODE, then ted realm issue; or install.yml"
_REASONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # what we say of the peer's certificate
    (("certificate has expired",), "{peer}: its certificate expired", _REISSUE),
    (("not yet valid",), "{peer}: its certificate is not valid yet", "check the clocks of both machines"),
    (
        ("self-signed", "self signed", "unable to get local issuer", "unable to verify the first",
         "certificate signature failure"),
        "{peer}: its certificate is not of this realm", _REISSUE,
    ),
    (("did not return a certificate",), "{peer}: showed no certificate", _REISSUE),
    # what the peer says of ours (an alert)
    (("alert certificate expired",), "{peer} refuses this node: its certificate expired", _OWN),
    (("alert unknown ca",), "{peer} refuses this node: its certificate is of another realm", _OWN),
    (("certificate required",), "{peer} refuses this node: it showed no certificate", _OWN),
    (("alert bad certificate", "alert unsupported certificate", "alert certificate unknown"),
     "{peer} refuses this node's certificate", _OWN),
    # what is no conversation at all
    (("wrong version number", "record layer failure", "packet length too long", "http request", "unexpected message"),
     "{peer}: what answers speaks plain HTTP or something else, but no TLS", _WHO_ANSWERS + ", and a proxy in between "
     "must pass TLS through"),
    (("alert protocol version", "unsupported protocol", "alert handshake failure", "no shared cipher"),
     "{peer}: what answers speaks no TLS 1.3", _WHO_ANSWERS),
)  # fmt: skip


# -- certificates


def common_name(certificate: x509.Certificate) -> str:
    """Return the name in a certificate's subject; of an authority, its realm's."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _general_name(address: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(address.strip("[]").split("%")[0]))
    except ValueError:
        pass
    if not _DNS_RE.fullmatch(address):
        raise ConfigError(
            f"{address!r} is neither a host name nor an IP address",
            hint="host names in their ASCII form (xn--...)",
        )
    return x509.DNSName(address)


def _alternative_names(node: str, addresses: Iterable[str]) -> x509.SubjectAlternativeName:
    uri = x509.UniformResourceIdentifier(NODE_URI + node)
    return x509.SubjectAlternativeName([uri, *[_general_name(address) for address in addresses]])


def _alternatives(extensions: x509.Extensions) -> x509.SubjectAlternativeName:
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise TrustError("a certificate or request that names no node", hint="ted realm request NODE") from error


def _node_of(extensions: x509.Extensions) -> str:
    uris = _alternatives(extensions).get_values_for_type(x509.UniformResourceIdentifier)
    nodes = [uri.removeprefix(NODE_URI) for uri in uris if uri.startswith(NODE_URI)]
    if len(nodes) != 1:
        raise TrustError("a certificate or request that names no node", hint="ted realm request NODE")
    return _checked(nodes[0])


def _checked(node: str) -> str:
    try:
        return names.check_name("node", node)
    except UnknownNameError as error:
        raise TrustError("a certificate or request with an impossible name", hint=error.hint) from error


def _addresses_of(extensions: x509.Extensions) -> tuple[str, ...]:
    found = _alternatives(extensions)
    dns = found.get_values_for_type(x509.DNSName)
    ips = [str(ip) for ip in found.get_values_for_type(x509.IPAddress)]
    return tuple(sorted({*dns, *ips}))


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise TrustError(f"{path}: not a certificate", hint="place it again: playbooks/install.yml") from error


def _parse_request(csr: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(csr)
        valid = request.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise TrustError("not a certificate request", hint="make it: ted realm request NODE") from error
    if not valid:
        raise TrustError("a certificate request not signed by its own key", hint="ted realm request NODE")
    return request


def _load_key(path: Path) -> Ed25519PrivateKey | None:
    pem = read_bounded(path, _MAX_PEM_BYTES)
    if pem is None:
        return None
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path}: not a private key", hint="remove it and request a new one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path}: not an Ed25519 key", hint="remove it and request a new one")
    return key


def _held_public_key(path: Path) -> Ed25519PublicKey | None:
    key = _load_key(path)
    return key.public_key() if key else None


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
