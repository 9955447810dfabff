"""`make demo`: a node that updates itself, commits a good release, rolls a broken one back, and remembers it."""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from integration.lab import terminal
from integration.lab.publisher import acl_release
from integration.lab.runner import execute
from integration.lab.scenario import FOLDER, load_scenario
from integration.lab.stock import Known, Stock
from updater.errors import ExitCode, UpdaterError

_TRUST = "usr/share/acl-updater/trust/1.root.json"
_BROKEN = {
    "etc/containerd/config.toml": b'version = 2\n\n[plugins."io.containerd.grpc.v1.cri"\n  enable_selinux = false\n'
}
_RELEASES = {1: ("1.0.0", "good"), 2: ("2.0.0", "good"), 3: ("3.0.0", "broken: its container runtime does not start")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return 0 only if every expectation held."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Publish three releases, and watch a node in QEMU update itself, commit, and roll back.",
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep keys, repository, releases and disk in OUT.work")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, _leave)
    out: Path = arguments.out.resolve()
    work = out.with_name(out.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        return show(out, work)
    except UpdaterError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing is left running", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    finally:
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)


def _leave(number: int, frame: FrameType | None) -> None:
    # Through the context managers, so that no machine stays behind.
    raise KeyboardInterrupt


def show(out: Path, work: Path) -> int:
    """Publish three releases in `work` and watch a node take them; return 0 only if every expectation held."""
    began = time.monotonic()
    _heading("Reference images, keys, and a signed repository with three releases")
    stock = publish_three(work)
    print(f"  ({time.monotonic() - began:.0f} s)")
    scenario = load_scenario(FOLDER / "demo.yaml")
    _heading("A node on release 1, watched from outside")
    live = terminal.Live()
    try:
        report = execute(stock, scenario, out, tell=live.tell, show=live.show)
    finally:
        live.close()
    terminal.summary(report)
    print(f"\n  {out / 'report.html'}\n  {out / 'report.json'}")
    return ExitCode.DONE if report.passed else ExitCode.FAILED


def publish_three(work: Path) -> Stock:
    """Make keys, a repository and the three releases in a folder; return what the lab starts from."""
    from integration.images.disk import make_factory_disk
    from integration.images.reference import ReleaseSpec, build, prepare
    from integration.lab.emulator import find_emulator
    from updater.release.cpio import TreeFile

    work.mkdir(parents=True)
    emulator, parts = find_emulator(), prepare()
    keys, repository = work / "keys", work / "repository"
    _release("keys", "init", "--keys", keys)
    _release("repo", "init", "--repo", repository, "--keys", keys)
    trust = work / "trust"
    trust.mkdir()
    shutil.copyfile(repository / "metadata/1.root.json", trust / "1.root.json")
    root = TreeFile((trust / "1.root.json").read_bytes())
    known = {}
    for number, (version, what) in _RELEASES.items():
        print(f"  building release {version} ({what})", flush=True)
        changes = {_TRUST: root}
        if number == 3:
            changes |= {name: TreeFile(content) for name, content in _BROKEN.items()}
        release = build(ReleaseSpec(version, changes=changes), work / version, parts)
        known[number] = Known(number, version, release.manifest.root.root_hash, what)
        if number == 1:
            make_factory_disk(release, work / "factory.raw", parts.tools)
    folders = [work / version for version, _ in _RELEASES.values()]
    # Frames and packs of whole images would take minutes, and this node follows the releases one by one.
    _release("publish", "--no-frames", "--no-packs", *folders, "--repo", repository, "--keys", keys)
    _release("promote", _RELEASES[2][0], "--channel", "stable", "--repo", repository, "--keys", keys)
    about = {"loader": f"systemd-boot {parts.tools.loader_version}"}
    return Stock(emulator, work / "factory.raw", repository, keys, known, trust, about)


def _release(*words: str | Path) -> None:
    shown = [word.name if isinstance(word, Path) else word for word in words]
    print(f"  $ acl-release {shlex.join(shown)}", flush=True)
    acl_release(*words)


def _heading(text: str) -> None:
    paint = terminal.painter(sys.stdout)
    print(f"\n{paint(text, '1')}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
