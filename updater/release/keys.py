"""Signing keys in folders: one private key per file, its public half beside it."""

from __future__ import annotations

import getpass
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from updater.errors import InvalidDocument, Refused
from updater.files import explained, fsync_directory

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from securesystemslib.signer import Signer, SSlibKey

log = logging.getLogger(__name__)

ROLES = ("root", "targets", "channels", "releases", "snapshot", "timestamp")
OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")
SCHEMES = ("ed25519", "ecdsa")
NAME_FIELD = "x-acl-name"
PASSPHRASE_VARIABLE = "ACL_RELEASE_PASSPHRASE"
_KEY_NAME = re.compile(rf"({'|'.join(ROLES)})(-[1-9][0-9]?)?(\.next)?")


def role_of(name: str) -> str:
    """Return the role that a key serves by its name, such as `root` for `root-2`; raise InvalidDocument."""
    match = _KEY_NAME.fullmatch(name)
    if match is None:
        raise InvalidDocument(
            "key name", "", f"{name!r} names no role's key", f"use one of {', '.join(ROLES)}, or such as root-2"
        )
    return match.group(1)


class KeyRing:
    """The keys found in one or more folders: `NAME.pub` with `NAME.pem`, or with `NAME.uri` for a key in a KMS.

    `NAME.uri` holds a private key URI of securesystemslib, such as `azurekms:…`. An offline key's private half may be
    away: its public half still counts.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look into `folders`, the first of which takes new keys."""
        self._folders = list(folders)
        self._passphrase: bytes | None = None

    @property
    def home(self) -> Path:
        """Return the folder that takes new keys."""
        return self._folders[0]

    def names(self) -> list[str]:
        """Return the sorted names of all keys whose public half is here."""
        return sorted({path.stem for folder in self._folders for path in folder.glob("*.pub") if _is_key(path.stem)})

    def names_for(self, role: str) -> list[str]:
        """Return the names of a role's keys that are in use, not those that wait to replace them."""
        return [name for name in self.names() if role_of(name) == role and not name.endswith(".next")]

    def public(self, name: str) -> SSlibKey:
        """Return a key's public half; raise InvalidDocument."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey

        path = self._find(f"{name}.pub")
        if path is None:
            raise Refused(
                f"there is no key {name} in {self._shown()}",
                mend="name the right folder with --keys, or make keys with `acl-release keys init`",
                reason="key-missing",
            )
        try:
            key = SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise InvalidDocument(str(path), "", f"not a public key: {error}", "restore it from your backup") from error
        key.unrecognized_fields[NAME_FIELD] = name.removesuffix(".next")
        return key

    def signer(self, keyid: str) -> Signer | None:
        """Return what signs with a key of this id, None when its private half is not here."""
        for name in self.names():
            public = self.public(name)
            if public.keyid == keyid:
                return self._signer(name, public)
        return None

    def _signer(self, name: str, public: SSlibKey) -> Signer | None:
        from securesystemslib.signer import CryptoSigner
        from securesystemslib.signer import Signer as AnySigner

        uri = self._find(f"{name}.uri")
        if uri is not None:
            return AnySigner.from_priv_key_uri(uri.read_text().strip(), public)
        path = self._find(f"{name}.pem")
        if path is None:
            return None
        if path.stat().st_mode & 0o077:
            log.warning("keys: others can read %s: chmod 600 it", path)
        return CryptoSigner(self._load_private(path), public)

    def _load_private(self, path: Path) -> PrivateKeyTypes:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        raw = path.read_bytes()
        try:
            try:
                return load_pem_private_key(raw, None)
            except TypeError:
                # It is encrypted.
                return load_pem_private_key(raw, self._ask(path))
        except ValueError as error:
            raise Refused(
                f"the private key {path} does not open: {error}", mend="see the passphrase", reason="key-unreadable"
            ) from error

    def _ask(self, path: Path) -> bytes:
        if self._passphrase is None:
            given = os.environ.get(PASSPHRASE_VARIABLE)
            if given is None and not sys.stdin.isatty():
                raise Refused(
                    f"{path} is encrypted, and there is no terminal to ask for its passphrase",
                    mend=f"set {PASSPHRASE_VARIABLE}",
                    reason="passphrase-missing",
                )
            self._passphrase = (given if given is not None else getpass.getpass(f"Passphrase of {path}: ")).encode()
        return self._passphrase

    def create(self, name: str, scheme: str, passphrase: bytes | None) -> SSlibKey:
        """Make a key, private half readable by its owner only; refuse to replace one.

        It goes to the first folder; one that waits to replace another (`NAME.next`) lies beside that one.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        role_of(name)
        private = Ed25519PrivateKey.generate() if scheme == "ed25519" else generate_private_key(SECP256R1())
        encryption: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        replaced = self._find(f"{name.removesuffix('.next')}.pub")
        folder = replaced.parent if replaced else self.home
        with explained(f"cannot write the key {name} to {folder}", "see that folder"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _write_new(folder / f"{name}.pem", pem, 0o600)
                _write_new(folder / f"{name}.pub", public, 0o644)
            except FileExistsError as error:
                raise Refused(
                    f"{error.filename} exists already", mend="keys are never overwritten", reason="key-exists"
                ) from error
        return self.public(name)

    def retire(self, name: str, replacement: str, moment: str) -> None:
        """Move a key aside under a name with its time, and give `replacement` its place.

        The public half moves last on the way out and first on the way in: `half_moved` can tell where power failed.
        """
        with explained(f"cannot rename the keys of {name}", "see the folder of keys"):
            if self._find(f"{replacement}.pub"):
                for suffix in ("pem", "uri", "pub"):
                    self._rename(f"{name}.{suffix}", f"retired-{moment}-{name}.{suffix}")
            for suffix in ("pub", "uri", "pem"):
                self._rename(f"{replacement}.{suffix}", f"{name}.{suffix}")

    def half_moved(self, name: str, replacement: str) -> SSlibKey | None:
        """Return the replacement's public half when its private half still waits and the old one is gone."""
        if self._find(f"{name}.pem") or self._find(f"{name}.uri"):
            return None
        if not (self._find(f"{replacement}.pem") or self._find(f"{replacement}.uri")):
            return None
        return self.public(replacement if self._find(f"{replacement}.pub") else name)

    def _rename(self, old: str, new: str) -> None:
        found = self._find(old)
        if found is not None:
            found.rename(found.with_name(new))
            fsync_directory(found.parent)

    def _find(self, file: str) -> Path | None:
        return next((folder / file for folder in self._folders if (folder / file).is_file()), None)

    def _shown(self) -> str:
        return ", ".join(str(folder) for folder in self._folders)


def new_names(root_keys: int) -> Iterator[str]:
    """Yield the names of the keys of a new repository."""
    for role in ROLES:
        if role == "root":
            yield from (f"root-{number}" for number in range(1, root_keys + 1))
        else:
            yield role


def passphrase_from_environment() -> bytes | None:
    """Return the passphrase for new keys, None for keys that are not encrypted."""
    given = os.environ.get(PASSPHRASE_VARIABLE, "")
    return given.encode() or None


def _is_key(name: str) -> bool:
    return _KEY_NAME.fullmatch(name) is not None


def _write_new(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(path.parent)
