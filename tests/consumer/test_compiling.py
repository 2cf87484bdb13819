"""Compiled denoisers: the same pictures by fewer kinds of calls, and no image that fails by a compiler. On the CPU."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from consumer.cli import app
from consumer.engine.call import Call
from consumer.engine.compiling import Compiler
from consumer.engine.denoisers import Denoiser
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Complaint, Drawn
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import save

if TYPE_CHECKING:
    from pathlib import Path

    from consumer.renderer.protocol import ImageTask

# Of torch's own code, while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

#: Six rows of a call: with guidance each image has two.
TASKS = [make_task(f"r{i}", seed=i, steps=2, scheduler="DPM++ 2M") for i in range(3)]
FAST = {"backend": "aot_eager"}  # everything but the C++ compiler


class Room:
    """A tiny PixArt, an engine whose denoiser is compiled, and what it draws alone."""

    def __init__(self, folder: Path) -> None:
        self.registry = ModelRegistry(Cards.of([f"tiny={save('pixart', folder / 'model')}"]))
        self.cache = folder / "compiled"
        self.alone = {task.request: draw_alone(self.registry, task) for task in TASKS}

    @property
    def denoiser(self) -> Any:
        return self.registry.get("tiny").plain["text2img"].transformer

    def studio(self, **settings: Any) -> tuple[Studio, Compiler]:
        room = Studio(self.registry, max_rows=8)
        settings = {"cache": self.cache, "after": 1, **settings}
        events = room.events
        settings["complain"] = lambda text: events.append(Complaint(text))
        compiler = room.engine.caller.compiler = Compiler("regional", **settings)
        return room, compiler

    def apart(self, room: Studio, tasks: list[ImageTask] = TASKS) -> int:
        """Draw tasks, and return the greatest difference from those that were drawn alone."""
        ended = room.draw(*tasks)
        assert all(isinstance(event, Drawn) for event in ended.values()), ended
        return max(grey_levels_apart(ended[t.request, 0].picture, self.alone[t.request]) for t in tasks)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("compiling"))


@pytest.fixture
def fresh(place: Room, monkeypatch: pytest.MonkeyPatch) -> Room:
    """The same, with nothing compiled in this process, and a cache of its own on the disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(place.cache))
    torch._dynamo.reset()
    return place


def complaints(room: Studio) -> list[str]:
    return [event.text for event in room.events if isinstance(event, Complaint)]


def test_compiled_calls_draw_the_same_pictures_in_padded_rows(fresh: Room) -> None:
    """Eager calls serve until a shape is compiled; then six rows are called as eight, and seen as six."""
    room, compiler = fresh.studio(**FAST)
    assert fresh.apart(room) <= 1  # nothing is compiled yet
    assert compiler.calls == 0
    compiler.wait()

    twin = compiler._twins[fresh.denoiser]
    assert twin is not None
    sizes: list[int] = []
    twin.module.register_forward_pre_hook(
        lambda _, __, given: sizes.append(len(given["hidden_states"])), with_kwargs=True
    )
    assert fresh.apart(room) <= 1
    assert compiler.calls >= 2
    assert set(sizes) == {8}
    assert complaints(room) == []
    assert all(a is b for a, b in zip(twin.module.parameters(), fresh.denoiser.parameters(), strict=True))


class Block(torch.nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.sin(hidden_states) * 2


class Blocks(torch.nn.Module):
    """The least that can be compiled: one kernel, which takes the C++ compiler seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.blocks = torch.nn.ModuleList([Block()])

    def forward(self, hidden_states: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        return (self.blocks[0](hidden_states) * self.weight,)


def test_compiled_code_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own compiler: another process finds in the folder what this one compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    headers: Any = torch._inductor.config
    monkeypatch.setattr(headers, "cpp_cache_precompile_headers", False)  # they take longer than one kernel
    module, rows = Blocks().requires_grad_(False), torch.randn(3, 4)
    call = Call("unet", module, "__call__", {"hidden_states": rows}, 3, layout=Denoiser(time=""))
    found, complaints = [], []
    for _ in range(2):
        torch._dynamo.reset()  # what the process itself remembers
        before = dict(torch._dynamo.utils.counters["inductor"])
        compiler = Compiler("regional", complain=complaints.append, cache=tmp_path, after=1)
        for _ in range(2):
            with torch.inference_mode():
                answer = compiler.run(call, call.arguments, 3, 8)
            compiler.wait()
        after = torch._dynamo.utils.counters["inductor"]
        found.append(
            [after[name] - before.get(name, 0) for name in ("fxgraph_cache_miss", "fxgraph_cache_hit")]
        )
        assert complaints == []
        torch.testing.assert_close(answer[0], module(rows)[0])
        assert len(answer[0]) == 3

    assert found == [[1, 0], [0, 1]]


def test_code_that_would_be_compiled_again_and_again_is_not_called_any_more(fresh: Room) -> None:
    """A guard that no longer holds stops all drawing while code is compiled; that happens once for a shape."""
    room, compiler = fresh.studio(**FAST)
    fresh.apart(room)
    compiler.wait()
    torch._dynamo.reset()

    assert fresh.apart(room) <= 1
    assert fresh.apart(room) <= 1
    assert compiler.calls == 1
    assert len(complaints(room)) == 1
    assert "compiled again" in complaints(room)[0]


def test_a_compiler_that_fails_costs_no_image(fresh: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape is called eagerly for good, and the log says so once."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    room, compiler = fresh.studio()
    for _ in range(3):
        assert fresh.apart(room) <= 1
        compiler.wait()
    eights = [text for text in complaints(room) if "no C++ compiler" in text]

    assert compiler.calls == 0
    assert len(eights) == len(complaints(room)) == len(compiler._twins[fresh.denoiser].eager)  # type: ignore[union-attr]
    assert "are made eagerly from now on" in eights[0]


def test_a_compiled_call_that_fails_is_made_again_eagerly(fresh: Room) -> None:
    """Whatever compiled code raises, but for memory and a lost device, costs a repetition and no image."""
    room, compiler = fresh.studio(**FAST)
    fresh.apart(room)
    compiler.wait()
    twin = compiler._twins[fresh.denoiser]
    assert twin is not None
    assert twin.ready
    twin.module.forward = lambda **_: 1 / 0

    assert fresh.apart(room) <= 1
    assert compiler.calls == 0
    assert ["ZeroDivisionError" in text for text in complaints(room)] == [True]


def test_a_call_with_loras_uses_the_module_itself(fresh: Room) -> None:
    """Its layers change when a LoRA is loaded or switched."""
    room, compiler = fresh.studio(**FAST)
    calls: list[Any] = []
    run = compiler.run
    compiler.run = lambda *given: calls.append(given) or run(*given)  # type: ignore[method-assign,func-returns-value]
    fresh.apart(room)
    compiler.wait()
    call, arguments, count, limit = next(given for given in calls if given[2] == 6)
    with torch.inference_mode():
        plain = run(call, arguments, count, limit)
        with_lora = run(replace(call, switched=True), arguments, count, limit)

    assert plain is not None
    assert with_lora is None


@pytest.mark.parametrize("other", ["--exact", "--offload", "--quantize fp8"])
def test_settings_that_compiled_code_cannot_keep_are_refused_at_the_start(other: str) -> None:
    """With both names and the reason."""
    ended = CliRunner().invoke(app, ["--compile", "regional", *other.split()], env={"COLUMNS": "200"})

    assert ended.exit_code == 2
    assert f"--compile regional and {other.split()[0]} exclude each other" in ended.output


def test_an_evicted_model_leaves_no_weights_behind(tmp_path: Path) -> None:
    """The compiler's copy of the modules goes with the model."""
    room = Room(tmp_path)
    studio, compiler = room.studio(after=10**9)  # a copy is made, and nothing is compiled
    room.apart(studio)
    weights = weakref.ref(next(room.denoiser.parameters()))
    assert len(compiler._twins) == 1
    del studio, room
    gc.collect()

    assert weights() is None
    assert len(compiler._twins) == 0
