"""The product layer: the updater as a vendor installs it, from its wheel, with its pinned dependencies."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path
from zipfile import ZipFile

from integration.images.cache import cached
from integration.images.tooltree import ToolTree
from updater.layouts import Layout
from updater.release.cpio import TreeFile, read_files
from updater.release.unit_layer import unit_layer
from updater.run import run

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = "3.13"
_TARGET = "usr/lib/acl-updater/python"
# The newest first: pip takes the best wheel that the guest's glibc can load.
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (41, 34, 28, 17)), "manylinux2014_x86_64")
_NOT_ON_NODES = ("integration/",)
_WRAPPER = f"""#!/usr/bin/python3 -ISB
import sys

sys.path.insert(0, "/{_TARGET}")
from updater.cli import main

sys.exit(main())
"""


def product_layer(tools: ToolTree, seeks: Layout | None = None) -> dict[str, TreeFile]:
    """Return the updater, its dependencies, its units and the enabled links, by path in the root tree.

    `seeks` is the layout whose slots are found by their hash trees: see `updater.release.unit_layer`.
    """
    files: dict[str, TreeFile] = {}
    for folder in (_dependencies(tools), _product(tools)):
        for name, file in read_files(folder / "python").items():
            # Wheels carry console scripts for the builder's interpreter; the wrapper below stands in.
            if not name.startswith("bin/"):
                files[f"{_TARGET}/{name}"] = file
    files["usr/bin/acl-updater"] = TreeFile(_WRAPPER.encode(), 0o755)
    for name, file in read_files(REPOSITORY / "rollback/health.d").items():
        files[f"usr/lib/acl-updater/health.d/{name}"] = file
    files.update(unit_layer(seeks))
    return files


def _dependencies(tools: ToolTree) -> Path:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = sorted(project["dependencies"])
    constraints = (REPOSITORY / "constraints.txt").read_text()
    recipe = {"recipe": 1, "dependencies": wanted, "constraints": constraints, "python": PYTHON}

    def make(folder: Path, final: Path) -> None:
        log.info("product: fetching the updater's dependencies for Python %s", PYTHON)
        pins = folder / "constraints.txt"
        pins.write_text(constraints)
        wheels = folder / "wheels"
        # sdnotify comes as source only; as pure Python its wheel is the same for every interpreter.
        _pip("wheel", "--no-deps", "--wheel-dir", wheels, "--constraint", pins, "sdnotify")
        _pip(
            "install",
            "--target",
            folder / "python",
            "--only-binary=:all:",
            "--implementation=cp",
            f"--python-version={PYTHON}",
            f"--abi=cp{PYTHON.replace('.', '')}",
            "--abi=abi3",
            "--abi=none",
            *(f"--platform={platform}" for platform in _PLATFORMS),
            "--no-compile",
            "--find-links",
            wheels,
            "--constraint",
            pins,
            *wanted,
        )
        run(["rm", "-rf", wheels])
        _compile(tools, folder / "python")

    return cached("dependencies", recipe, make)


def _product(tools: ToolTree) -> Path:
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
    recipe = {"recipe": 1, "sources": digest.hexdigest(), "backend": installed_version("hatchling")}

    def make(folder: Path, final: Path) -> None:
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel", REPOSITORY)
        (wheel,) = (folder / "wheel").glob("*.whl")
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.startswith(_NOT_ON_NODES)]
            archive.extractall(folder / "python", names)
        _compile(tools, folder / "python")

    return cached("product", recipe, make)


def _sources() -> list[Path]:
    folders = (REPOSITORY / name for name in ("updater", "rollback", "partition-layouts"))
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    found = [path for path in found if "__pycache__" not in path.parts]
    return sorted([*found, REPOSITORY / "pyproject.toml", REPOSITORY / "README.md", REPOSITORY / "LICENSE"])


def _pip(*arguments: str | Path) -> None:
    run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        env={**_pip_environment(), "SOURCE_DATE_EPOCH": "1767225600"},
        timeout_s=1800,
    )


def _pip_environment() -> dict[str, str]:
    wanted = ("PIP_", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT", "REQUESTS_CA")
    return {name: value for name, value in os.environ.items() if name.startswith(wanted)}


def _compile(tools: ToolTree, folder: Path) -> None:
    # The root is read-only and its times are set: bytecode checked against times would be compiled at every start.
    run(
        [
            tools.tool("python3.13"),
            "-m",
            "compileall",
            "-q",
            "-j1",
            "--invalidation-mode=unchecked-hash",
            f"-s{folder}",
            f"-p/{_TARGET}",
            folder,
        ],
        env={"PYTHONHASHSEED": "0"},
        timeout_s=600,
    )
