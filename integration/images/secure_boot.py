"""The lab's own Secure Boot: a key, programs signed by it, variable stores that trust it alone."""

from __future__ import annotations

import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration.images.base import EPOCH
from integration.images.tooltree import ToolTree
from updater.release.uki import SecureBoot
from updater.run import run

_OWNER = uuid.uuid5(uuid.NAMESPACE_DNS, "secure-boot.acl-lab")
_YEARS = timedelta(days=30 * 365)
_START = "import sys; from virt.firmware.vars import main; sys.exit(main())"


def make_key(folder: Path) -> SecureBoot:
    """Make a key with a certificate that it signs itself, for years to come, as PEM files in `folder`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    # OVMF and sbsign both take RSA with 2048 bits; what is larger costs an emulated firmware time at each boot.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acl-lab Secure Boot")])
    since = datetime.fromtimestamp(EPOCH, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = known_key(folder)
    made.key.touch(mode=0o600)
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return made


def known_key(folder: Path) -> SecureBoot:
    """Return the key that `make_key` left in a folder."""
    return SecureBoot(folder / "key.pem", folder / "certificate.pem")


def sign(program: Path, out: Path, signing: SecureBoot, tools: ToolTree) -> None:
    """Write a signed copy of an EFI program to `out`."""
    key: list[str | Path] = ["--key", signing.key, "--cert", signing.certificate]
    run([tools.tool("sbsign"), *key, "--output", out, program], timeout_s=120)


def enroll(store: Path, out: Path, certificate: Path) -> None:
    """Write a copy of a variable store to `out` in which Secure Boot is on, and trusts one certificate alone.

    It is PK, KEK and db at once. By virt-firmware (the extra `lab`).
    """
    who = ("--set-pk", "--add-kek", "--add-db")
    words = [word for option in who for word in (option, str(_OWNER), str(certificate))]
    run([sys.executable, "-c", _START, "--input", store, *words, "--sb", "--output", out], timeout_s=120)
