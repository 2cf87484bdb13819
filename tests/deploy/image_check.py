"""`make image-check`: builds what the Dockerfile says without a container engine, and runs it as a stranger would.

Each stage is a root directory: an overlay over this machine's own root, which stands in for the base image. Each RUN
is executed in it with the stage's own variables, and each COPY is made. Then the image runs on a read-only root,
in a network of its own, as a user with a random number and no home. The documented client gets its picture,
the health command agrees, and SIGTERM ends it in order.

It needs Linux, root, and Debian's or Ubuntu's packages. What it does not show: the CUDA base image, layers, and
whatever a real container engine does differently.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import io
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.deploy.dockerfile import ROOT, Stage, environment_of, expanded, ignored_but, read, workdir_of

#: The documented example client's body.
DOCUMENTED = {"negative_prompt": "", "width": 768, "height": 768, "cfg_scale": 9, "steps": 100}
BODY = {"prompt": "a red circle on a blue background", "number_of_images": 1, "seed": 5} | DOCUMENTED
FOLDER = "IMAGE_CHECK_FOLDER"  # the variable that says where to build
STRANGER = 12345  # a user that the image does not know
PATIENCE = 600.0  # seconds until the worker has loaded its model
#: Folders of this machine that the base image does not have. `/opt` stays: pip's local index may be there.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HIDDEN = ("/home", "/root", "/work", "/srv", "/mnt")


class Build:
    """The stages that are built so far, below a folder."""

    def __init__(self, folder: Path, arguments: Mapping[str, str]) -> None:
        self.folder = folder
        self.arguments = dict(arguments)  # --build-arg
        _, self.stages = read()

    def root(self, stage: str) -> Path:
        return self.folder / stage / "root"

    def build(self, stage: Stage) -> None:
        """Mount a stage's root over its base's, and execute its instructions."""
        say(f"stage {stage.name}")
        for name in ("upper", "work", "root"):
            (self.folder / stage.name / name).mkdir(parents=True)
        layers = [f"lowerdir={':'.join(self._lower(stage))}"]
        layers += [f"{kind}dir={self.folder / stage.name / kind}" for kind in ("upper", "work")]
        mount("-t", "overlay", "overlay", "-o", ",".join(layers), self.root(stage.name))
        for hidden in ("/dev", "/tmp", *filter(os.path.isdir, HIDDEN)):
            mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", self.root(stage.name) / hidden[1:])
        mount("-t", "proc", "proc", self.root(stage.name) / "proc")
        for device in DEVICES:
            (self.root(stage.name) / "dev" / device).touch()
            mount("--bind", f"/dev/{device}", self.root(stage.name) / "dev" / device)
        (self.root(stage.name) / "dev/shm").mkdir()
        (self.root(stage.name) / "dev/shm").chmod(0o1777)
        self._execute(stage)

    def _lower(self, stage: Stage) -> list[str]:
        base = self.stages.get(stage.base)
        return ["/"] if base is None else [str(self.folder / base.name / "upper"), *self._lower(base)]

    def _execute(self, stage: Stage) -> None:
        variables = {"PATH": "", **environment_of_base(stage, self)}
        workdir = workdir_of(self.stages.get(stage.base), self.stages)
        for one in stage.instructions:
            if one.name == "ARG":
                name, _, default = one.text.partition("=")
                variables[name] = self.arguments.get(name, default.strip('"'))
            elif one.name == "ENV":
                variables |= environment_of(stage, self.stages, self.arguments)
            elif one.name == "WORKDIR":
                workdir = one.text
                (self.root(stage.name) / workdir[1:]).mkdir(parents=True, exist_ok=True)
            elif one.name == "COPY":
                self._copy(stage, workdir, expanded(one.text, variables).split())
            elif one.name == "RUN":
                began = time.monotonic()
                self.run(stage, ["/bin/sh", "-c", one.text], builder() | variables, workdir)
                say(f"  RUN {one.text[:80]} ...: {time.monotonic() - began:.0f} s")

    def _copy(self, stage: Stage, workdir: str, words: list[str]) -> None:
        *sources, target = [word for word in words if not word.startswith("--")]
        origin = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        place = self.root(stage.name) / str(Path(workdir, target))[1:]
        into = target.endswith("/") or target == "."
        for source in ignored_but() if sources == ["."] else sources:
            path = (self.root(origin) / source[1:]) if origin else ROOT / source
            if not origin and Path(source).parts[0] not in ignored_but():
                raise SystemExit(f"COPY {source}: .dockerignore leaves it out")
            goal = place / path.name if into else place
            goal.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                leave = shutil.ignore_patterns("__pycache__", "*.pyc") if origin is None else None
                shutil.copytree(path, goal, symlinks=True, dirs_exist_ok=True, ignore=leave)
            else:
                shutil.copy2(path, goal)

    def run(self, stage: Stage, command: list[str], environment: Mapping[str, str], workdir: str) -> None:
        """Run a command in a stage's root, as root."""
        done = subprocess.run(
            ["chroot", str(self.root(stage.name)), "env", f"--chdir={workdir}", *command],
            env=dict(environment),
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"stage {stage.name}: {shlex.join(command)} ended with {done.returncode}")


def environment_of_base(stage: Stage, build: Build) -> dict[str, str]:
    """The variables at a stage's first instruction."""
    return environment_of(Stage(stage.name, stage.base), build.stages, build.arguments)


def builder() -> dict[str, str]:
    """What the person who builds brings along: an index for pip, and proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.endswith("_proxy")
    }


def try_it(build: Build) -> None:
    """Run the image's default command, and look at it as its users do."""
    stage = list(build.stages.values())[-1]
    root = build.root(stage.name)
    environment = environment_of(stage, build.stages, build.arguments)
    del environment["HOME"]
    mount("-t", "tmpfs", "-o", "mode=1777,size=512m", "tmpfs", root / "data")
    mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", root / "tmp")
    mount("-o", "remount,ro", root)
    own_network()
    user = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--no-new-privs"]
    inside = ["chroot", str(root), *user, "env", f"--chdir={stage.last('WORKDIR')}"]

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*inside, *words], env=environment, text=True, capture_output=True, timeout=300, check=False
        )

    expect(command("sh", "-c", "id -u; touch /opt/code/x").stdout == f"{STRANGER}\n", "another user")
    expect(command("touch", "/opt/x").returncode != 0, "the root file system can be written to")
    for words in (["--version"], ["worker", "--help"], ["train", "--help"], ["serve", "--help"]):
        done = command(*stage.command("ENTRYPOINT"), *words)
        expect(done.returncode == 0, f"dreamdrop {shlex.join(words)}: {done.stderr}")
    health = stage.command("HEALTHCHECK")
    expect(command(*health).returncode == 1, "healthy before anything runs")

    say("the default command")
    started = subprocess.Popen(
        [*inside, *stage.command("ENTRYPOINT"), *stage.command("CMD")],
        env=environment,
        start_new_session=True,
    )
    try:
        began = time.monotonic()
        while command(*health, "--ready").returncode:
            expect(started.poll() is None, f"it ended with {started.returncode}")
            expect(time.monotonic() - began < PATIENCE, "it is not ready")
            time.sleep(0.5)
        say(f"ready after {time.monotonic() - began:.0f} s")
        sick = command(*health)
        expect(sick.returncode == 0, f"not healthy: {sick.stdout}{sick.stderr}")
        began = time.monotonic()
        call = urllib.request.Request(
            f"http://localhost:{environment['DREAMDROP_PORT']}/generate/",
            json.dumps(BODY).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=PATIENCE) as answer:
            images = json.load(answer)["images"]
        picture = Image.open(io.BytesIO(base64.b64decode(images[0])))
        expect((len(images), picture.size) == (1, (768, 768)), f"{len(images)} images, {picture.size}")
        say(f"the documented client has its picture after {time.monotonic() - began:.0f} s")
    finally:
        started.send_signal(signal.SIGTERM)
        status = started.wait(120)
    expect(status == 0, f"after SIGTERM it ended with {status}")
    say("SIGTERM ended it in order")


def own_network() -> None:
    """Only loopback, and ports below 1024 for everybody, as container engines have it."""
    os.unshare(os.CLONE_NEWNET) if hasattr(os, "unshare") else _unshare_network()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")


def _unshare_network() -> None:
    """`os.unshare` of Python 3.12, for 3.11."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "unshare")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"image-check: {otherwise}")


def say(line: str) -> None:
    print(f"image-check: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    chosen = parser.parse_args()
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("apt-get"):
        raise SystemExit("image-check needs root, unshare, and Debian's or Ubuntu's packages")
    for place in ("/opt/dreamdrop", "/opt/code", "/models", "/src"):
        if os.path.exists(place):
            raise SystemExit(f"image-check: {place} is on this machine already, so it would be in the image")
    if FOLDER not in os.environ:
        raise SystemExit(again_with_mounts_of_its_own())
    folder = Path(os.environ[FOLDER])
    mount(
        "-t", "tmpfs", "-o", "size=20g", "tmpfs", folder
    )  # an overlay cannot lie inside its own lower layer
    build = Build(folder, dict(one.split("=", 1) for one in chosen.build_arg))
    for stage in build.stages.values():
        build.build(stage)
    try_it(build)


def again_with_mounts_of_its_own() -> int:
    """Run this program in a mount namespace, which takes all mounts along when it ends.

    Nothing below the folder is ever removed file by file: other file systems are mounted there.
    """
    folder = tempfile.mkdtemp(prefix="dreamdrop-image-")
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-m",
        "tests.deploy.image_check",
    ]
    try:
        environment = os.environ | {FOLDER: folder}
        return subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment, check=False).returncode
    finally:
        os.rmdir(folder)  # empty here


if __name__ == "__main__":
    main()
