"""Certificates and keys, made when a deployment starts and deleted when it ends by itself.

An authority of our own signs the one certificate that the SuperLink shows; nodes trust that
authority and no other. Its private key is never written to disk. Nodes prove who they are by keys
on the curve P-256.
"""

import datetime
import errno
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.files import replace_bytes

SKEW = datetime.timedelta(minutes=5)
"""How far clocks may differ."""
LIFETIME = datetime.timedelta(days=7)
"""How long a certificate is good for: longer than any run."""


@dataclass(frozen=True)
class Certificates:
    """Files of a server that shows who it is.

    Attributes:
        authority: Certificate of who signed; whoever connects must have it.
        server: Certificate of the server.
        key: Its private key, which nobody else may read.
    """

    authority: Path
    server: Path
    key: Path


def issue(
    folder: Path,
    *,
    names: Sequence[str] = ("localhost", "127.0.0.1"),
    start: datetime.datetime | None = None,
    lifetime: datetime.timedelta = LIFETIME,
) -> Certificates:
    """Make an authority and the certificate of a server.

    Args:
        folder: Where the files go; it is made if it is not there.
        names: Host names and addresses that the server is reached by.
        start: When they begin to be good, in UTC; unset means now.
        lifetime: How long they are good.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    begin = (start or datetime.datetime.now(datetime.UTC)) - SKEW
    signer, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signer_name, server_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in ("fedsim deployment", names[0])
    )

    def blank(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + SKEW + lifetime)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        )

    authority = (
        blank(signer_name, signer.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(signer, hashes.SHA256())
    )
    server = (
        blank(server_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(one) for one in names]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    made = Certificates(folder / "authority.crt", folder / "server.crt", folder / "server.key")
    pem = serialization.Encoding.PEM
    made.authority.write_bytes(authority.public_bytes(pem))
    made.server.write_bytes(server.public_bytes(pem))
    write_secret(
        made.key,
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return made


def node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make the key of a node, and write it where its SuperNode reads it."""
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_secret(path, data)
    return key


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone may read, from the first moment on; all or nothing.

    Raises:
        FileExistsError: There is one already.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    replace_bytes(path, data, private=True)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
