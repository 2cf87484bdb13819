"""Fixtures of the worker's tests: a tiny Stable Diffusion with random weights, and targets of announcements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from consumer.announce.webhook import Webhook
    from consumer.engine.loading.registry import ModelRegistry
    from consumer.renderer.protocol import ImageTask, RawPicture
    from tests.mailboxes import Results
    from tests.servers.webhook_receiver import Receiver
    from tests.studio import Studio


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with safetensors and random weights."""
    from tests.studio import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def lora_file(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny UNet and text encoder, as diffusers saves it."""
    from tests.studio import save_lora

    return save_lora(tiny_folder, tmp_path_factory.mktemp("lora"))


@pytest.fixture
def make_registry(tiny_folder: Path) -> Callable[..., ModelRegistry]:
    """Make a registry that serves "tiny"."""
    from consumer.engine.loading.registry import ModelRegistry
    from infra.models.cards import Cards

    def make(**settings: Any) -> ModelRegistry:
        return ModelRegistry(Cards.of([f"tiny={tiny_folder}"]), **settings)

    return make


@pytest.fixture(scope="session")
def registry(tiny_folder: Path) -> ModelRegistry:
    """One registry for all tests that do not change the model."""
    from consumer.engine.loading.registry import ModelRegistry
    from infra.models.cards import Cards

    return ModelRegistry(Cards.of([f"tiny={tiny_folder}"]))


@pytest.fixture(scope="session")
def task() -> Callable[..., ImageTask]:
    """Make a task; every field has a default, pictures included."""
    from tests.studio import make_task

    return make_task


@pytest.fixture(scope="session")
def studio() -> type[Studio]:
    """Make an engine that is listened to: studio(registry, **settings)."""
    from tests.studio import Studio

    return Studio


@pytest.fixture(scope="session")
def alone() -> Callable[[ModelRegistry, ImageTask], RawPicture]:
    """Draw a task by the plain diffusers pipeline, with no engine near it."""
    from tests.studio import draw_alone

    return draw_alone


@pytest.fixture(scope="session")
def apart() -> Callable[[RawPicture, RawPicture], int]:
    """The greatest difference between two pictures, in grey levels."""
    from tests.studio import grey_levels_apart

    return grey_levels_apart


@pytest.fixture
def results() -> Results:
    """Results in memory, a clock that a test can advance, and announcers over both."""
    from tests.mailboxes import Results

    return Results()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A webhook's receiver on loopback."""
    from tests.servers.webhook_receiver import receiving

    async with receiving() as server:
        yield server


@pytest.fixture
async def hook(receiver: Receiver) -> AsyncIterator[Webhook]:
    """A webhook to that receiver."""
    from tests.webhooks import webhook

    made = webhook(receiver)
    yield made
    await made.close()
