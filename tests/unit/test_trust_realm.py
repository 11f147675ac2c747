"""The realm's authority, nodes' certificates, and mutual TLS over real sockets."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from ted.errors import ConfigError, TedError, TrustError, UnknownNameError
from ted.trust.anchors import TrustStore
from ted.trust.catalog import Catalog
from ted.trust.names import utc_now
from ted.trust.realm import NodeIdentity, RealmAuthority, explain, peer_name, require_peer

HANDSHAKE_BOUND_BYTES = 4096


@pytest.fixture
def authority(tmp_path: Path) -> RealmAuthority:
    made = RealmAuthority(tmp_path / "authority")
    made.create("example")
    return made


def enrol(authority: RealmAuthority, directory: Path, node: str, *addresses: str) -> NodeIdentity:
    identity = NodeIdentity(directory)
    csr = identity.request(node, addresses).csr
    authority.issue_from_request(node, csr, into=directory)
    return identity


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# -- issuing


def test_an_authority_is_made_once(authority: RealmAuthority) -> None:
    before = authority.certificate()
    assert authority.create("example") is False
    assert authority.certificate() == before
    assert stat.S_IMODE((authority.directory / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="realm example, not of other"):
        authority.create("other")


def test_a_certificate_names_node_and_addresses_and_serves_both_ways(authority: RealmAuthority, tmp_path: Path) -> None:
    enrol(authority, tmp_path / "s01", "s01", "10.77.0.1", "s01.example.net", "fe80::1")
    issued = certificate(tmp_path / "s01/node.pem")
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["ted:node:s01"]
    assert names.get_values_for_type(x509.DNSName) == ["s01.example.net"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.77.0.1", "fe80::1"]
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert sorted(oid.dotted_string for oid in usage) == ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]
    life = issued.not_valid_after_utc - utc_now()
    assert timedelta(days=824) < life < timedelta(days=826)
    assert NodeIdentity(tmp_path / "s01").name == "s01"


def test_the_nodes_key_never_leaves_it(authority: RealmAuthority, tmp_path: Path) -> None:
    enrol(authority, tmp_path / "s01", "s01")
    assert stat.S_IMODE((tmp_path / "s01/node.key").stat().st_mode) == 0o600
    assert not list(authority.directory.rglob("node.key"))


def test_requesting_and_issuing_again_changes_nothing(authority: RealmAuthority, tmp_path: Path) -> None:
    identity = NodeIdentity(tmp_path / "s01")
    first = identity.request("s01", ["10.0.0.1", "b.example", "a.example"])
    issued = authority.issue_from_request("s01", first.csr)
    again = identity.request("s01", ["a.example", "10.0.0.1", "b.example"])
    assert (first.changed, again.changed, again.csr) == (True, False, first.csr)
    repeated = authority.issue_from_request("s01", again.csr)
    assert (issued.changed, repeated.changed) == (True, False)
    assert repeated.certificate == issued.certificate


@pytest.mark.parametrize("way", ["addresses", "key", "age", "authority"])
def test_a_certificate_is_issued_anew_when_it_no_longer_serves(
    authority: RealmAuthority, tmp_path: Path, way: str
) -> None:
    identity = NodeIdentity(tmp_path / "s01")
    issued = authority.issue_from_request("s01", identity.request("s01", ["a.example"]).csr)
    addresses, issuer = ["a.example"], authority
    if way == "addresses":
        addresses = ["b.example"]
    elif way == "key":
        (tmp_path / "s01/node.key").unlink()
    elif way == "age":
        almost = RealmAuthority(authority.directory, now=lambda: utc_now() + timedelta(days=549))
        assert almost.issue_from_request("s01", identity.request("s01", addresses).csr).changed is False
        issuer = RealmAuthority(authority.directory, now=lambda: utc_now() + timedelta(days=551))
    else:
        for name in ("ca.key", "ca.pem"):
            (authority.directory / name).unlink()
        authority.create("example")
    csr = identity.request("s01", addresses).csr
    assert issuer.issue_from_request("s01", csr, check=True).changed is True
    fresh = issuer.issue_from_request("s01", csr)
    assert fresh.changed is True
    assert fresh.certificate != issued.certificate
    assert issuer.issue_from_request("s01", csr).changed is False


def test_check_makes_no_file(authority: RealmAuthority, tmp_path: Path) -> None:
    assert RealmAuthority(tmp_path / "new").create("example", check=True) is True
    assert NodeIdentity(tmp_path / "s01").request("s01", check=True).changed is True
    assert authority.issue("s01", into=tmp_path / "s01", check=True).changed is True
    assert {path.name for path in tmp_path.iterdir()} == {"authority"}
    assert not (authority.directory / "issued").exists()


def test_a_key_may_be_made_at_the_authority_for_carrying(authority: RealmAuthority, tmp_path: Path) -> None:
    assert authority.issue("s01", ["a.example"], into=tmp_path / "stick").changed is True
    assert authority.issue("s01", ["a.example"], into=tmp_path / "stick").changed is False
    NodeIdentity(tmp_path / "stick").check()


def test_a_request_for_another_node_or_no_request_is_refused(authority: RealmAuthority, tmp_path: Path) -> None:
    csr = NodeIdentity(tmp_path / "s01").request("s01").csr
    with pytest.raises(TrustError, match="for node s01, not for hq"):
        authority.issue_from_request("hq", csr)
    for garbage in (b"", b"garbage", authority.certificate()):
        with pytest.raises(TrustError, match="not a certificate request"):
            authority.issue_from_request("s01", garbage)
    key = Ed25519PrivateKey.generate()
    nameless = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s01")])
    )
    from cryptography.hazmat.primitives.serialization import Encoding

    with pytest.raises(TrustError, match="names no node"):
        authority.issue_from_request("s01", nameless.sign(key, None).public_bytes(Encoding.PEM))


@pytest.mark.parametrize("address", ["a b", "", "-x", "nöt.example", "*.example", "a..b", "x" * 300])
def test_an_address_that_is_none_is_refused(authority: RealmAuthority, address: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        authority.issue("s01", [address])


def test_a_very_long_address_is_judged_at_once() -> None:
    with pytest.raises(ConfigError):
        NodeIdentity(Path("/nonexistent")).request("s01", ["a" * 60 + "!" * 200], check=True)


def test_a_node_may_have_any_lawful_name(authority: RealmAuthority, tmp_path: Path) -> None:
    for node in ("a+b@c_d-e.f", "x" * 128):
        assert enrol(authority, tmp_path / node, node).name == node
    with pytest.raises(UnknownNameError):
        authority.issue("../hq")


# -- talking


def converse(
    server: ssl.SSLContext, client: ssl.SSLContext, expected: str = "hq"
) -> tuple[str | Exception, str | Exception]:
    """Connect over loopback; return what each side learnt of the other: a name, or its error."""
    heard: list[str | Exception] = []

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with raw:
            try:
                with server.wrap_socket(raw, server_side=True) as connection:
                    heard.append(peer_name(connection))
                    connection.sendall(b"x")
            except (OSError, TedError) as error:
                heard.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        said: str | Exception
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                client.wrap_socket(raw) as connection,
            ):
                require_peer(connection, expected)
                assert connection.recv(1) == b"x"
                said = peer_name(connection)
        except ssl.SSLError as error:
            said = explain(error, expected)
        except TedError as error:
            said = error
        thread.join(10)
    return heard[0], said


def test_two_nodes_of_one_realm_know_each_other_by_name(authority: RealmAuthority, tmp_path: Path) -> None:
    hq, s01 = (enrol(authority, tmp_path / node, node) for node in ("hq", "s01"))
    assert converse(hq.server_context(), s01.client_context()) == ("s01", "hq")


def test_the_wrong_node_at_the_right_address_is_refused(authority: RealmAuthority, tmp_path: Path) -> None:
    s02, s01 = (enrol(authority, tmp_path / node, node) for node in ("s02", "s01"))
    _, said = converse(s02.server_context(), s01.client_context(), "hq")
    assert isinstance(said, TrustError)
    assert said.message == "hq was called and s02 answered"
    assert "ted_address of hq" in (said.hint or "")


@pytest.mark.parametrize("name", ["example", "other"])
def test_another_realms_node_is_refused_by_both_sides(authority: RealmAuthority, tmp_path: Path, name: str) -> None:
    """Also a realm of the same name: names prove nothing."""
    foreign = RealmAuthority(tmp_path / "foreign authority")
    foreign.create(name)
    hq, stranger = enrol(authority, tmp_path / "hq", "hq"), enrol(foreign, tmp_path / "s01", "s01")
    heard, said = converse(hq.server_context(), stranger.client_context())
    assert isinstance(heard, OSError)
    assert isinstance(said, TrustError)
    assert said.message == "hq: its certificate is not of this realm"
    naive = stranger.client_context()
    naive.load_verify_locations(cadata=authority.certificate().decode())
    heard, said = converse(hq.server_context(), naive)
    assert isinstance(heard, ssl.SSLError)
    assert "not of this realm" in explain(heard, "s01").message
    assert isinstance(said, TrustError)
    assert said.message.startswith("hq refuses this node")


def test_an_expired_certificate_is_refused_by_both_sides_and_by_its_own_node(
    authority: RealmAuthority, tmp_path: Path
) -> None:
    hq = enrol(authority, tmp_path / "hq", "hq")
    past = RealmAuthority(authority.directory, now=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    (authority.directory / "ca.pem").rename(tmp_path / "kept")
    past.create("example")  # an authority that was there already in 2020, with the same key
    (authority.directory / "ca.pem").unlink()
    (tmp_path / "kept").rename(authority.directory / "ca.pem")
    old = enrol(past, tmp_path / "s01", "s01")
    with pytest.raises(TrustError, match=r"this node's certificate \(s01\) expired") as caught:
        old.client_context()
    assert "ted realm request s01" in (caught.value.hint or "")
    then = NodeIdentity(old.directory, now=lambda: datetime(2020, 2, 1, tzinfo=UTC))
    heard, said = converse(hq.server_context(), then.client_context())
    assert isinstance(heard, ssl.SSLError)
    assert explain(heard, "s01").message == "s01: its certificate expired"
    assert isinstance(said, TrustError)
    assert said.message == "hq refuses this node: its certificate expired"
    _, said = converse(then.server_context(), hq.client_context(), "s01")
    assert isinstance(said, TrustError)
    assert said.message == "s01: its certificate expired"


def test_a_client_without_a_certificate_is_refused(authority: RealmAuthority, tmp_path: Path) -> None:
    hq = enrol(authority, tmp_path / "hq", "hq")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(tmp_path / "hq/ca.pem")
    heard, said = converse(hq.server_context(), bare)
    assert isinstance(heard, ssl.SSLError)
    assert explain(heard, "s01").message == "s01: showed no certificate"
    assert isinstance(said, TrustError)
    assert said.message == "hq refuses this node: it showed no certificate"


def test_nothing_older_than_tls_1_3_is_spoken(authority: RealmAuthority, tmp_path: Path) -> None:
    hq, s01 = (enrol(authority, tmp_path / node, node) for node in ("hq", "s01"))
    old = s01.client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    heard, said = converse(hq.server_context(), old)
    assert isinstance(heard, ssl.SSLError)
    assert isinstance(said, TrustError)


def test_plain_http_in_place_of_tls_is_explained(authority: RealmAuthority, tmp_path: Path) -> None:
    s01 = enrol(authority, tmp_path / "s01", "s01")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        s01.client_context().wrap_bio(incoming, outgoing).do_handshake()
    error = explain(caught.value, "hq")
    assert error.message == "hq: what answers speaks plain HTTP or something else, but no TLS"
    assert "ted_transport" in (error.hint or "")
    assert "proxy" in (error.hint or "")


@pytest.mark.parametrize("reason", ["invalid CA certificate", "Missing Authority Key Identifier"])
def test_whatever_is_wrong_with_a_certificate_has_a_hint(reason: str) -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_message = reason
    said = explain(error, "s01")
    assert said.message == f"s01: its certificate does not hold: {reason.lower()}"
    assert "ted realm request s01" in (said.hint or "")


def handshake_bytes(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[int, int]:
    """Return the bytes the client and the server send until the first byte of payload could follow."""
    to_client, to_server, from_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    sides: list[Callable[[], None]] = [
        client.wrap_bio(to_client, from_client).do_handshake,
        server.wrap_bio(to_server, from_server, server_side=True).do_handshake,
    ]
    sent = [0, 0]
    for turn in range(6):
        side = turn % 2
        with suppress(ssl.SSLWantReadError):
            sides[side]()
        data = (from_client, from_server)[side].read()
        sent[side] += len(data)
        (to_server, to_client)[side].write(data)
    sides[0]()
    sides[1]()
    return sent[0], sent[1]


def test_a_mutual_handshake_leaves_room_in_8_kib(
    authority: RealmAuthority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("10.77.0.1", "store-0001.branches.example.net")
    hq, s01 = (enrol(authority, tmp_path / node, node, *names) for node in ("hq", "s01"))
    client, server = handshake_bytes(hq.server_context(), s01.client_context())
    with capsys.disabled():
        print(f"\nmutual TLS 1.3 handshake: client {client} + server {server} = {client + server} bytes")
    assert 1000 < client + server < HANDSHAKE_BOUND_BYTES


# -- names in certificates


@pytest.mark.parametrize(
    "shown",
    [None, {}, {"subjectAltName": (("DNS", "hq"),)},
     {"subjectAltName": (("URI", "ted:node:hq"), ("URI", "ted:node:s01"))},
     {"subjectAltName": (("DNS", "ted:node:hq"),)}],
)  # fmt: skip
def test_a_certificate_that_names_not_exactly_one_node_is_refused(shown: dict[str, object] | None) -> None:
    with pytest.raises(TrustError):
        peer_name(shown)


def test_a_name_in_a_certificate_is_checked_like_any_other() -> None:
    with pytest.raises(TrustError, match="impossible name"):
        peer_name({"subjectAltName": (("URI", "ted:node:../../etc"),)})


@pytest.mark.parametrize("name", ["node.key", "node.pem", "ca.pem"])
def test_a_missing_or_strange_file_of_a_node_is_named(authority: RealmAuthority, tmp_path: Path, name: str) -> None:
    identity = enrol(authority, tmp_path / "s01", "s01")
    other = enrol(authority, tmp_path / "s02", "s02")
    if name == "ca.pem":
        foreign = RealmAuthority(tmp_path / "foreign")
        foreign.create("other")
        (identity.directory / name).write_bytes(foreign.certificate())
    else:
        (identity.directory / name).write_bytes((other.directory / name).read_bytes())
    with pytest.raises(TrustError, match=r"node\.key is not the key|not of realm other") as caught:
        identity.server_context()
    assert "ted realm request" in (caught.value.hint or "")
    (identity.directory / name).unlink()
    with pytest.raises(TrustError):
        identity.server_context()


# -- trusted roots


def test_a_root_is_imported_once_and_an_older_one_only_by_force(tmp_path: Path) -> None:
    from ted.errors import ReplayError

    catalog = Catalog(tmp_path / "c", tmp_path / "k")
    catalog.create("hq")
    old = catalog.root_bytes()
    catalog.rotate("root")
    store = TrustStore(tmp_path / "trust")
    done = store.import_root(catalog.root_bytes())
    assert (done.changed, done.anchor.distributor, done.anchor.version, done.former) == (True, "hq", 2, None)
    assert store.import_root(catalog.root_bytes()).changed is False
    with pytest.raises(ReplayError, match="root 1 is older than root 2"):
        store.import_root(old)
    assert store.import_root(old, force=True, check=True).changed is True
    assert store.read("hq") == catalog.root_bytes()
    assert store.import_root(old, force=True).changed is True
    assert store.import_root(catalog.root_bytes()).changed is True
    assert [anchor.distributor for anchor in store.list()] == ["hq"]
    assert store.remove("hq") is True
    assert store.remove("hq") is False
    assert store.list() == []


def test_what_is_no_root_or_not_signed_by_itself_is_not_imported(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c", tmp_path / "k")
    catalog.create("hq")
    root = catalog.root_bytes()
    store = TrustStore(tmp_path / "trust")
    timestamp = (tmp_path / "c/timestamp.json").read_bytes()
    for data in (b"", b"{}", timestamp, root.replace(b'"version":1', b'"version":9'), b"x" * (600 << 10)):
        with pytest.raises(TrustError, match="not a root"):
            store.import_root(data)
    with pytest.raises(TrustError, match="root of hq, not of branch"):
        store.import_root(root, "branch")
    assert not (tmp_path / "trust").exists()
