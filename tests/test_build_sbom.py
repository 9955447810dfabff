"""What an image says about its parts."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

from tests.root_trees import as_folder
from updater.release.cpio import TreeFile
from updater.release.root_tree import open_root_tree
from updater.release.sbom import Package, installed_packages, make_sbom, vendor_of

DPKG = b"""Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.37-2

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: base-files
Status: install ok installed
Architecture: amd64
Version: 13.8+deb13u7
Description: Debian base system
 Status: this line belongs to a description
"""
TREE = {
    "var/lib/dpkg/status": TreeFile(DPKG),
    "usr/lib/os-release": TreeFile(b'ID=acl\nID_LIKE="azurelinux fedora"\n'),
    "usr/lib/x/python/tuf-7.0.1.dist-info/METADATA": TreeFile(b"Name: tuf\nVersion: 7.0.1\n\nA text.\n"),
    "usr/lib/x/python/typing_extensions-4.dist-info/METADATA": TreeFile(b"Name: typing_extensions\nVersion: 4\n"),
}
BUILT = datetime(2026, 1, 2, tzinfo=UTC)


def test_packages_come_from_the_trees_own_databases(tmp_path: Path) -> None:
    with open_root_tree(as_folder(TREE, tmp_path)) as tree:
        assert installed_packages(tree) == [
            Package("deb", "base-files", "13.8+deb13u7", "amd64"),
            Package("deb", "bash", "5.2.37-2", "amd64"),
            Package("pypi", "tuf", "7.0.1"),
            Package("pypi", "typing-extensions", "4"),
        ]
        assert vendor_of(tree) == "fedora"


def test_an_empty_tree_has_an_empty_bill(tmp_path: Path) -> None:
    with open_root_tree(tmp_path) as tree:
        assert installed_packages(tree) == []
        assert vendor_of(tree) == "linux"


def bill(packages: list[Package]) -> bytes:
    return make_sbom(packages, image_id="acl", version="1.0.0", vendor="debian", built=BUILT, serial=uuid.UUID(int=7))


def test_a_bill_is_cyclonedx_and_the_same_every_time() -> None:
    packages = [Package("deb", "bash", "5.2.37-2", "amd64"), Package("pypi", "tuf", "7.0.1")]

    raw = bill(packages)

    assert raw == bill(list(reversed(packages)))
    document = json.loads(raw)
    assert document["bomFormat"] == "CycloneDX"
    assert document["specVersion"] == "1.6"
    assert document["metadata"]["component"]["version"] == "1.0.0"
    assert [part["purl"] for part in document["components"]] == [
        "pkg:deb/debian/bash@5.2.37-2?arch=amd64",
        "pkg:pypi/tuf@7.0.1",
    ]
