"""The reference image: releases made of the Debian base, the product and, for the lab, the lab overlay."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from integration.images.base import EPOCH, Base, base_tree
from integration.images.btrfs import as_btrfs
from integration.images.layers import Layer, compose
from integration.images.product import product_layer
from integration.images.ssh import ssh_layer
from integration.images.tooltree import ToolTree, tool_tree
from updater.layouts import Layout, load_layout
from updater.release.build import BuildInputs, BuiltRelease, build_release
from updater.release.cpio import TreeFile, read_files, write_cpio
from updater.release.uki import SecureBoot
from updater.slots import Slot

log = logging.getLogger(__name__)

IMAGE_ID = "acl-reference"
_HERE = Path(__file__).parent
_COMMAND_LINE = (
    "console=tty0",
    "console=ttyS0,115200",
    "systemd.show_status=1",
    # The updater mounts the ESP itself, and the initrd finds the state partition on the root's own disk.
    "systemd.gpt_auto=0",
    # What those services would bring up to date is part of the image.
    "systemd.condition_needs_update=0",
)
# Nobody logs in at this host, and it runs containers only.
_MASKED = (
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "modprobe@drm.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-logind.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-user-sessions.service",
)
# What the kernel does against hostile neighbours costs an emulated processor a tenth of each boot, its tests of its own
# ciphers and of the processor's jitter another tenth.
_LAB_COMMAND_LINE = (
    "cryptomgr.notests=1",
    "initcall_blacklist=jent_mod_init",
    "mitigations=off",
    "init_on_alloc=0",
    "audit=0",
    "lsm=capability",
    "kfence.sample_interval=0",
)
_FAULT_GENERATOR = "usr/lib/systemd/system-generators/acl-lab-faults"


@dataclass(frozen=True, slots=True)
class ReleaseSpec:
    """One release of the reference image.

    `changes` are files laid over the tree (path in the root -> file), `removed` paths taken out of it; `layout` names
    the layout of the disks that it is for. Where only /usr swaps, that may be btrfs, and `slot_addons` carry the verity
    parameters instead of the UKI.
    """

    version: str
    changes: Layer = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    lab: bool = True
    security_epoch: int = 0
    signing: SecureBoot | None = None
    checked: bool = True
    layout: str = "dps-root"
    file_system: Literal["erofs", "btrfs"] = "erofs"
    slot_addons: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceImages:
    """The cached ingredients that every release of the reference image is made of."""

    tools: ToolTree
    base: Base


def prepare() -> ReferenceImages:
    """Fetch and build what all releases share: minutes on a cold cache, nothing on a warm one."""
    tools = tool_tree()
    base = base_tree()
    product_layer(tools)
    return ReferenceImages(tools, base)


def build(spec: ReleaseSpec, out: Path, ingredients: ReferenceImages | None = None) -> BuiltRelease:
    """Build one release into the folder `out`, in seconds."""
    parts = ingredients or prepare()
    built = datetime.fromtimestamp(EPOCH, UTC) + timedelta(days=1)
    mtime_s = int(built.timestamp())
    out.mkdir(parents=True, exist_ok=True)
    layout = load_layout(spec.layout)
    seeks = layout if layout.partition("data", Slot.A).fixed_partuuid and not spec.slot_addons else None
    vendors = [_HERE / "vendor", _HERE / f"vendor-{layout.swaps}"]
    layers: list[Layer] = [read_files(vendor / "root") for vendor in vendors]
    layers += [_vendor_links(layout), product_layer(parts.tools, seeks)]
    initrd = {name: file for vendor in vendors for name, file in read_files(vendor / "initrd").items()}
    panic_s, command_line = 10, list(_COMMAND_LINE)
    if spec.lab:
        panic_s, command_line = 1, [*_COMMAND_LINE, *_LAB_COMMAND_LINE]
        mark = {"usr/lib/acl-lab/release": TreeFile(f"{spec.version}\n".encode())}
        lab = read_files(_HERE / "lab/root")
        layers += [lab, ssh_layer(), mark]
        initrd.update({**read_files(_HERE / "lab/initrd"), **mark, _FAULT_GENERATOR: lab[_FAULT_GENERATOR]})
    layers += [{"usr/lib/os-release": TreeFile(_os_release(spec.version))}, _config(layers, layout), spec.changes]
    tree = out / "tree.tar"
    compose(parts.base.tar, layers, spec.removed, tree, mtime_s=EPOCH)
    if spec.file_system == "btrfs":
        tree = as_btrfs(tree, parts.tools, uuid.uuid5(uuid.NAMESPACE_DNS, f"{IMAGE_ID}/{spec.version}"))
    overlay = out / "vendor.initrd"
    overlay.write_bytes(write_cpio(initrd, mtime_s))
    try:
        with_tools(parts.tools)
        return build_release(
            BuildInputs(
                version=spec.version,
                image_id=IMAGE_ID,
                built=built,
                root=tree,
                root_is_image=spec.file_system == "btrfs",
                kernel=parts.base.kernel,
                kernel_version=parts.base.kernel_version,
                initrds=[parts.base.initrd, overlay],
                out=out,
                layouts=[spec.layout],
                panic_s=panic_s,
                security_epoch=spec.security_epoch,
                command_line=command_line,
                stub=parts.tools.stub,
                addon_stub=parts.tools.addon_stub,
                slot_addons=spec.slot_addons,
                signing=spec.signing,
                checked=spec.checked,
            )
        )
    finally:
        tree.unlink(missing_ok=True)
        overlay.unlink(missing_ok=True)


def with_tools(tools: ToolTree) -> None:
    """Put the tool tree in front of this process's PATH."""
    path = os.environ.get("PATH", "")
    if str(tools.bin) not in path.split(":"):
        os.environ["PATH"] = f"{tools.bin}:{path}"


def _os_release(version: str) -> bytes:
    fields: Sequence[tuple[str, str]] = (
        ("NAME", "ACL updater reference image"),
        ("PRETTY_NAME", f"ACL updater reference image {version}"),
        ("ID", IMAGE_ID),
        ("ID_LIKE", "debian"),
        ("IMAGE_ID", IMAGE_ID),
        ("IMAGE_VERSION", version),
        ("VERSION_ID", version),
    )
    return "".join(f'{name}="{value}"\n' for name, value in fields).encode()


def _config(layers: Sequence[Layer], layout: Layout) -> dict[str, TreeFile]:
    """Return the vendor's configuration with the layout in it."""
    name = "usr/lib/acl-updater/config.yaml"
    given = next((layer[name].content for layer in reversed(layers) if name in layer), b"format: 1\n")
    return {name: TreeFile(given + f"layout: {layout.name}\n".encode())}


def _vendor_links(layout: Layout) -> dict[str, TreeFile]:
    # Where /home, /srv and /root are links into /var, systemd must not make folders of them.
    homes = ("home", "provision") if layout.swaps == "root" else ()
    return {
        "etc/resolv.conf": TreeFile(link="/run/systemd/resolve/stub-resolv.conf"),
        "etc/localtime": TreeFile(link="/usr/share/zoneinfo/UTC"),
        "etc/systemd/system/default.target": TreeFile(link="/usr/lib/systemd/system/multi-user.target"),
        **{f"etc/systemd/system/{unit}": TreeFile(link="/dev/null") for unit in _MASKED},
        **{f"etc/tmpfiles.d/{name}.conf": TreeFile(link="/dev/null") for name in homes},
    }
