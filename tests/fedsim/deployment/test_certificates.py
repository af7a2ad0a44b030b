"""Certificates and keys of a deployment."""

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from fedsim.deployment.certificates import Certificates, issue, node_key, write_secret


def shake_hands(made: Certificates, authority: Path | None, name: str) -> str:
    """Meet a server that shows these certificates; return the version of TLS spoken."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server, made.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        client.load_verify_locations(authority)
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=name) as secure:
            return str(secure.version())
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_who_trusts_the_authority_trusts_the_server_by_each_of_its_names(
    tmp_path: Path, name: str
) -> None:
    made = issue(tmp_path)

    assert shake_hands(made, made.authority, name) == "TLSv1.3"


@pytest.mark.parametrize(
    ("name", "said"), [("other.example", "Hostname mismatch"), ("127.0.0.2", "IP address mismatch")]
)
def test_the_server_is_not_taken_for_another(tmp_path: Path, name: str, said: str) -> None:
    made = issue(tmp_path)

    with pytest.raises(ssl.SSLCertVerificationError, match=said):
        shake_hands(made, made.authority, name)


def test_who_has_not_the_authority_does_not_trust_the_server(tmp_path: Path) -> None:
    made, other = issue(tmp_path / "one"), issue(tmp_path / "other")

    for authority in (None, other.authority):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(made, authority, "localhost")


def test_a_certificate_is_worth_nothing_after_its_time(tmp_path: Path) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = issue(tmp_path, start=yesterday, lifetime=datetime.timedelta(hours=1))

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(made, made.authority, "localhost")


def test_private_keys_are_for_their_owner_alone_and_the_authoritys_is_nowhere(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "certificates"
    made = issue(folder)
    path = tmp_path / "node.key"
    key = node_key(path)

    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(one.name for one in folder.iterdir()) == [
        "authority.crt",
        "server.crt",
        "server.key",
    ]
    read = load_ssh_private_key(path.read_bytes(), None)
    assert read.public_key() == key.public_key()
    load_pem_private_key(made.key.read_bytes(), None)


def test_no_two_deployments_share_a_key(tmp_path: Path) -> None:
    one, other = issue(tmp_path / "one"), issue(tmp_path / "other")

    assert one.key.read_bytes() != other.key.read_bytes()
    assert one.authority.read_bytes() != other.authority.read_bytes()


def test_a_secret_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    with pytest.raises(KeyboardInterrupt):
        write_secret(tmp_path / "secret", b"one")

    assert not (tmp_path / "secret").exists()


def test_a_secret_is_never_written_over_another(tmp_path: Path) -> None:
    write_secret(tmp_path / "secret", b"one")

    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "secret", b"other")
