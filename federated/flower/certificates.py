"""Who is who in a federation: a certificate for the server, and a key pair for every node.

The server proves its name with a certificate that the nodes check against the certificate of its issuer (TLS). A node
proves who it is with a key whose public half was registered with the server before.
"""

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import ConfigError, ResourceError

OWN_NAMES = ("localhost", "127.0.0.1")  # by which the server's own processes reach it
CLOCKS_DIFFER = datetime.timedelta(minutes=5)  # a certificate is valid from so long before it was issued


@dataclass(frozen=True)
class Certificates:
    """Three PEM files: the issuer's certificate, for the nodes; the server's certificate and its private key."""

    ca: Path
    cert: Path
    key: Path


def issue(directory: Path, hosts: Sequence[str] = OWN_NAMES, days: int = 30) -> Certificates:
    """Writes a new server certificate for these names and addresses and `OWN_NAMES`, valid for `days` from now.

    Its issuer is made for it alone: the issuer's private key is never written, so nobody can issue a second one.
    """
    if not hosts:
        raise ConfigError("certificates: hosts must name at least one name or address of the server, got none")
    private_folder(directory)
    files = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    issuer, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _ca(issuer, days)
    write_private(files.ca, ca.public_bytes(serialization.Encoding.PEM))
    write_private(files.cert, _server(key, issuer, ca, hosts).public_bytes(serialization.Encoding.PEM))
    write_private(files.key, _private_bytes(key, serialization.PrivateFormat.PKCS8))
    return files


def node_key(directory: Path, name: str) -> tuple[Path, Path]:
    """A node's private and public key (P-384, OpenSSH format). Keys that are there already stay: they are who it is."""
    private, public = directory / name, directory / f"{name}.pub"
    if private.exists() and public.exists():
        return private, public
    private_folder(directory)
    key = ec.generate_private_key(ec.SECP384R1())  # the node's requests are signed with it; Flower takes NIST curves
    write_private(private, _private_bytes(key, serialization.PrivateFormat.OpenSSH))
    write_private(
        public, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return private, public


def check(certificates: Certificates, host: str) -> None:
    """Raises ResourceError with one line unless a node that trusts `ca` would accept this server under this name.

    A whole TLS handshake takes place in memory, so what is checked is what OpenSSL would say: dates, name, issuer, and
    that the private key belongs to the certificate.
    """
    for file in (certificates.ca, certificates.cert, certificates.key):
        if not file.is_file():
            raise ResourceError(f"certificates: {file} is missing; name an existing file, or issue new ones")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(certificates.ca)
    except ssl.SSLError as error:
        raise ResourceError(f"certificates: {certificates.ca} holds no certificate in PEM format") from error
    try:
        server.load_cert_chain(certificates.cert, certificates.key, password="")  # never ask for one on the terminal
    except (ssl.SSLError, ValueError) as error:
        raise ResourceError(
            f"certificates: {certificates.cert} and {certificates.key} are not a certificate and its private key "
            "in PEM format without a password"
        ) from error
    try:
        _shake_hands(server, client, host)
    except ssl.SSLCertVerificationError as error:
        raise ResourceError(
            f"certificates: {certificates.cert} does not do for the host {host} and the issuer {certificates.ca}: "
            f"{error.verify_message.rstrip('.')}; issue a new one"
        ) from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)  # after the other one has had its say


def _ca(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hanse federation")])
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, ca: x509.Certificate, hosts: Sequence[str]
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hanse server")])
    return (
        x509.CertificateBuilder(ca.subject, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([_alternative_name(host) for host in dict.fromkeys([*hosts, *OWN_NAMES])]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(issuer, hashes.SHA384())
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def private_folder(path: Path) -> None:
    """Makes a folder that only its owner can enter. One that is there already stays as it is: it may hold more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """A new file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
