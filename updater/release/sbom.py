"""Software bills of materials of root trees, in CycloneDX JSON."""

from __future__ import annotations

import email.parser
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from updater.release.root_tree import RootTree, read_text
from updater.run import find_tool, run

_DPKG = ("var/lib/dpkg/status", "usr/lib/sysimage/dpkg/status")
_RPM = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
_SBOM_FORMAT = "1.6"


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One installed package; `kind` is its package URL type: deb, rpm or pypi."""

    kind: str
    name: str
    version: str
    architecture: str = ""


def installed_packages(tree: RootTree) -> list[Package]:
    """Return what the tree's package databases say is installed, sorted."""
    return sorted({*_deb(tree), *_rpm(tree), *_python(tree)})


def make_sbom(
    packages: list[Package], *, image_id: str, version: str, vendor: str, built: datetime, serial: uuid.UUID
) -> bytes:
    """Return CycloneDX JSON for a release; the same packages give the same bytes."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    image = Component(name=image_id, version=version, type=ComponentType.OPERATING_SYSTEM, bom_ref=image_id)
    bom = Bom(
        serial_number=serial,
        metadata=BomMetaData(component=image, timestamp=built),
    )
    for package in packages:
        url = PackageURL(
            type=package.kind,
            namespace=vendor if package.kind in ("deb", "rpm") else None,
            name=package.name,
            version=package.version,
            qualifiers={"arch": package.architecture} if package.architecture else None,
        )
        component = Component(
            name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url)
        )
        bom.components.add(component)
    bom.register_dependency(image, bom.components)
    schema = SchemaVersion.from_version(_SBOM_FORMAT)
    return make_outputter(bom, OutputFormat.JSON, schema).output_as_string(indent=1).encode() + b"\n"


def vendor_of(tree: RootTree) -> str:
    """Return the distribution whose packages the tree holds: the last of ID_LIKE, else ID."""
    text = read_text(tree, "etc/os-release") or read_text(tree, "usr/lib/os-release") or ""
    fields = dict(re.findall(r"^([A-Z_]+)=[\"']?([^\"'\n]*)", text, re.MULTILINE))
    return (fields.get("ID_LIKE") or fields.get("ID") or "linux").split()[-1]


def _deb(tree: RootTree) -> Iterator[Package]:
    for name in _DPKG:
        text = read_text(tree, name)
        if text is None:
            continue
        for stanza in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
            if fields.get("Status", "").endswith(" installed"):
                yield Package("deb", fields["Package"], fields["Version"], fields.get("Architecture", ""))
        return


def _rpm(tree: RootTree) -> Iterator[Package]:
    for name in _RPM:
        raw = tree.content(name)
        if raw is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "rpmdb.sqlite").write_bytes(raw)
            listing = run(
                [
                    find_tool("rpm"),
                    f"--dbpath={folder}",
                    "--query",
                    "--all",
                    "--queryformat",
                    r"%{NAME}\t%{EVR}\t%{ARCH}\n",
                ]
            )
        for line in listing.stdout.decode().splitlines():
            yield Package("rpm", *line.split("\t"))
        return


def _python(tree: RootTree) -> Iterator[Package]:
    for name in tree.names():
        if not re.search(r"\.dist-info/METADATA$", name):
            continue
        metadata = email.parser.HeaderParser().parsestr(read_text(tree, name) or "")
        if metadata["Name"] and metadata["Version"]:
            yield Package("pypi", re.sub(r"[-_.]+", "-", metadata["Name"]).lower(), metadata["Version"])
