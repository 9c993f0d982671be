"""Certificates: what is issued is accepted, and everything that a node would refuse is refused before a start."""

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from core.errors import ConfigError, ResourceError
from federated.flower import certificates
from federated.flower.certificates import Certificates, _shake_hands, check, issue, node_key


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_an_issued_certificate_is_accepted_for_its_hosts(tmp_path: Path, host: str) -> None:
    check(issue(tmp_path), host)


def test_an_issued_certificate_is_valid_for_the_days_asked_for_and_no_issuer_key_is_kept(tmp_path: Path) -> None:
    files = issue(tmp_path, days=7)
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=6, hours=23) < left <= datetime.timedelta(days=7)
    assert {file.name for file in tmp_path.iterdir()} == {"ca.pem", "server.pem", "server.key"}


def test_only_the_owner_can_read_keys_and_certificates(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("an old file that all can read")
    issue(tmp_path)
    node_key(tmp_path, "node-0")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_only_the_owner_can_enter_a_folder_that_is_made_for_keys(tmp_path: Path) -> None:
    issue(tmp_path / "server" / "certificates")
    node_key(tmp_path / "keys", "node-0")
    for folder in ("server/certificates", "keys"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


def test_a_certificate_is_valid_for_the_servers_own_processes_wherever_nodes_reach_it(tmp_path: Path) -> None:
    for host in ("fed.example.org", "127.0.0.1"):
        check(issue(tmp_path, ["fed.example.org"]), host)


def test_the_certificate_passes_strict_verification(tmp_path: Path) -> None:
    files = issue(tmp_path)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=files.ca)
    server.load_cert_chain(files.cert, files.key)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    _shake_hands(server, client, "localhost")


def refused(files: Certificates, host: str = "127.0.0.1") -> str:
    with pytest.raises(ResourceError) as error:
        check(files, host)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    files = issue(tmp_path)
    missing: Path = getattr(files, name)
    missing.unlink()
    assert f"{missing} is missing" in refused(files)


def at(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Lets certificates be issued as if it were so many days later."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            moved = datetime.datetime.now(tz) + datetime.timedelta(days=days)
            return cls.combine(moved.date(), moved.timetz())

    clock = type("datetime", (), {"datetime": Clock, "timedelta": datetime.timedelta, "UTC": datetime.UTC})
    monkeypatch.setattr(certificates, "datetime", clock)


def test_an_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, -31)
    assert "certificate has expired" in refused(issue(tmp_path, days=30))


def test_a_certificate_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 2)
    assert "not yet valid" in refused(issue(tmp_path))


@pytest.mark.parametrize("host", ["example.org", "127.0.0.2"])
def test_another_host_is_refused(tmp_path: Path, host: str) -> None:
    assert f"not valid for '{host}'" in refused(issue(tmp_path), host)


def test_another_issuer_is_refused(tmp_path: Path) -> None:
    ours, other = issue(tmp_path / "ours"), issue(tmp_path / "other")
    assert str(other.ca) in refused(Certificates(other.ca, ours.cert, ours.key))


def test_the_private_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    ours, other = issue(tmp_path / "ours"), issue(tmp_path / "other")
    assert "not a certificate and its private key" in refused(Certificates(ours.ca, ours.cert, other.key))


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    files = issue(tmp_path)
    files.ca.write_text("hello")
    assert f"{files.ca} holds no certificate" in refused(files)


def test_no_hosts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hosts"):
        issue(tmp_path, hosts=())


def test_a_node_key_is_a_pair_on_p384_and_is_kept(tmp_path: Path) -> None:
    private_file, public_file = node_key(tmp_path, "node-0")
    private, public = (
        load_ssh_private_key(private_file.read_bytes(), None),
        load_ssh_public_key(public_file.read_bytes()),
    )
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    before = private_file.read_bytes()
    assert node_key(tmp_path, "node-0") == (private_file, public_file)
    assert private_file.read_bytes() == before
