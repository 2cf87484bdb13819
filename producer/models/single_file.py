"""A whole model in one file on its way into a store: it becomes a diffusers folder first, in a process with torch."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from infra.child_process import child_environment, python_command, without_secrets
from infra.models import published
from infra.models.cards import BUILT_IN
from infra.models.hub_caches import folders_of
from infra.models.model_files import ModelUnavailable, download_configs
from infra.models.single_files import (
    CONFIGS,
    USUAL,
    SingleFile,
    check_configs,
    find_configs,
    need_configs,
    read_single_file,
    suits,
)
from infra.stores.store import WrongContent
from schemas.errors import NotFound, Rejected, Unsupported
from schemas.models import version_prefix

if TYPE_CHECKING:
    from infra.models.cards import ModelCard
    from infra.stores.store import Store
    from schemas.models import PublishedCard

_LONGEST = 3600.0  # seconds; SDXL takes a minute or two, and a slow disk ten times as long


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user says of a file beside its name."""

    configs: str = ""  # a folder, or the name of a built-in or published model; "": found by the family
    prediction_type: str = ""  # "": as the file says, else as the configs say


async def to_folder(
    store: Store, source: Path, wishes: Wishes, scratch: Path, say: Callable[[str], None]
) -> Path:
    """Make a diffusers folder of a checkpoint; returns it.

    Args:
        scratch: an empty folder.
        say: told in a line for people where the configs come from.

    Raises:
        Rejected: the file cannot be used, or no configs for it are known; the message says what to do.
        Unsupported: torch and diffusers are not installed.
    """
    file = await asyncio.to_thread(read_single_file, source)
    if find_spec("torch") is None or find_spec("diffusers") is None:
        raise Unsupported(
            f"{source} is a whole model in one file; converting it needs torch and diffusers, which are not "
            "installed: in Dreamdrop's folder, pip install -c constraints.txt -e '.[consumer]'"
        )
    needed, free = source.stat().st_size, shutil.disk_usage(scratch).free
    if free < needed:
        raise _refused(
            source,
            f"its folder needs {needed:,} bytes in {scratch.parent}, which has {free:,} left; set TMPDIR to "
            "a folder on another disk",
        )
    configs, origin = await _configs(store, file, wishes.configs, scratch / "configs")
    say(f"configs and tokenizers are those of {origin}")
    if file.family == "sd2" and not (file.prediction_type or wishes.prediction_type):
        say(
            "models of Stable Diffusion 2 predict either noise or velocity, and this file does not say which: it is "
            "taken as the configs have it. If its pictures are noise, import it again with --prediction-type"
        )
    say(f"making a diffusers folder of {source.name} ({needed:,} bytes) ...")
    target = scratch / "model"
    command = python_command("consumer.engine.loading.single_file", str(source), str(configs), str(target))
    command += [wishes.prediction_type] if wishes.prediction_type else []
    await asyncio.to_thread(_run, command, source)
    return target


def _run(command: list[str], source: Path) -> None:
    environment = {**child_environment(without_secrets()), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(source, f"the conversion took more than {_LONGEST / 60:.0f} minutes") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        memory = "; is there enough memory?" if done.returncode < 0 else ""
        raise _refused(source, f"the conversion failed: {last[0][:300]}{memory}") from None
    if refused := answer.get("refused"):
        raise Rejected("unsupported", refused, field="source")


async def _configs(store: Store, file: SingleFile, given: str, scratch: Path) -> tuple[Path, str]:
    """A folder with configs and tokenizers, and in words where they come from."""
    by_name = {card.name: card for card in BUILT_IN}
    if given:
        if Path(given).expanduser().is_dir():
            check_configs(file, Path(given).expanduser())
            return Path(given).expanduser(), given
        if given not in by_name:
            try:
                card = await published.resolve(store, given)
            except Rejected as error:
                text = f"is {given!r}: there is no such folder, and {error.message}"
                raise Rejected.of_field("configs", text) from None
            folder = await _fetch(store, card, scratch)
            check_configs(file, folder)
            return folder, card.reference
        folders = folders_of(by_name[given])
        folder = folders[0] if folders else await _download(file, by_name[given])
        check_configs(file, folder)
        return folder, given
    for built_in in BUILT_IN:
        if (found := find_configs(file, "", [built_in])) is not None:
            return found, built_in.name
    for number, card in enumerate(reversed(await published.list_models(store))):
        usual = USUAL.get(file.family, card.prediction_type)
        if card.kind == "full" and card.family == file.family != "" and card.prediction_type == usual:
            folder = await _fetch(store, card, scratch / str(number))
            if suits(file, folder):
                return folder, card.reference
    wanted = next((card for card in BUILT_IN if file.family and card.family == file.family), None)
    if wanted is None:
        raise _refused(
            file.path, "no model of its family is known; give a diffusers folder of one with --configs FOLDER"
        )
    return await _download(file, wanted), wanted.name


async def _download(file: SingleFile, card: ModelCard) -> Path:
    try:
        return await asyncio.to_thread(download_configs, card)
    except ModelUnavailable as error:
        text = (
            f"{need_configs(file, BUILT_IN)} Give it with --configs FOLDER. Asked for them just now, {error}"
        )
        raise Rejected("model_unavailable", text, field="configs") from error


async def _fetch(store: Store, card: PublishedCard, folder: Path) -> Path:
    """The configs and tokenizers of a published model."""
    for file in card.files:
        if not file.path.endswith(CONFIGS):
            continue
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        key = version_prefix(card.name, card.version) + file.path
        try:
            if await store.fetch_file(key, target) != file.sha256:
                raise WrongContent(f"{key} is damaged; see `dreamdrop models verify {card.reference}`")
        except NotFound as error:
            raise Rejected("model_unavailable", f"{key} is missing", field="configs") from error
    return folder


def _refused(source: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"{source}: {why}", field="source")
