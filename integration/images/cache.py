"""The user's cache folder: slow things, kept by the content of their recipe."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from updater.errors import EnvironmentFailure

log = logging.getLogger(__name__)

_KEEP_UNUSED_S = 30 * 24 * 3600


def cache_folder() -> Path:
    """Return the cache folder of this project, shared between clones (`XDG_CACHE_HOME`, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "acl-updater"


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Return the name under which a recipe's product is kept: 16 hex digits of the recipe's SHA-256."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def cached(kind: str, recipe: Mapping[str, Any], make: Callable[[Path, Path], None]) -> Path:
    """Return the folder that holds the recipe's product, made at most once on this machine.

    `make(folder, final)` fills `folder`, which is then renamed to `final`: a product that is there is complete.
    Other processes that want the same product wait for the one that makes it.
    """
    home = cache_folder() / kind
    home.mkdir(parents=True, exist_ok=True)
    key = recipe_key(recipe)
    final = home / key
    with locked(home / f"{key}.lock"):
        if not final.is_dir():
            for leftover in home.glob(f"{key}.partial*"):
                remove_tree(leftover)
            partial = home / f"{key}.partial"
            partial.mkdir()
            started = time.monotonic()
            make(partial, final)
            (partial / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
            partial.rename(final)
            log.info("%s %s: made in %.0f s", kind, key, time.monotonic() - started)
            _forget_killed(home)
            _forget_unused(home, keep=key)
        os.utime(final)
    return final


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that makes %s", path.stem)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remove_tree(path: Path) -> None:
    """Remove a folder, also one whose subfolders are read-only."""
    try:
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)
        shutil.rmtree(path)
    except PermissionError as error:
        raise EnvironmentFailure(
            f"{path} is left over from a build as root, and cannot be removed",
            mend=f"run: sudo rm -rf --one-file-system {path}",
            reason="cache-leftover",
        ) from error


def _forget_killed(home: Path) -> None:
    """Remove what makers left that were killed: nobody holds their locks."""
    for partial in home.glob("*.partial"):
        with (home / f"{partial.stem}.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(partial)
            except BlockingIOError:
                continue
            except EnvironmentFailure as error:
                log.info("%s", error)


def _forget_unused(home: Path, keep: str) -> None:
    horizon = time.time() - _KEEP_UNUSED_S
    for folder in home.iterdir():
        if folder.is_dir() and folder.name != keep and folder.stat().st_mtime < horizon:
            remove_tree(folder)
