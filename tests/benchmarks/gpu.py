"""The engine on a GPU, in minutes: `make gpu`. It prints a table, and writes it into docs/performance.md.

For each model: a backlog of equal requests against one perfectly batched call of the plain pipeline, a mixed backlog
against one request at a time, two LoRAs in turn, a request on an idle device and among others, and the denoiser's
share of the peak that a matrix multiplication reaches in the same run; eager, and compiled.
`--device cpu --size tiny` runs all of it on a CPU, to see that it works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.compiling import Compiler
from consumer.engine.devices import pick_dtype
from consumer.engine.engine import Engine
from consumer.engine.loading import pipelines, spelling
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Complaint, Drawn, Lora, Stepped, Undrawable
from infra.models.cards import Cards
from tests.benchmarks.gpu_models import SIZED, Sized, save_sized
from tests.studio import make_task, save_lora

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer.renderer.protocol import ImageTask

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"
NO_GPU = (
    "make gpu needs a CUDA device, and torch sees none here. Run it on a machine with a GPU, its driver and a CUDA "
    "build of torch (without TORCH_INDEX, or with one of CUDA builds). `python -m tests.benchmarks.gpu --device cpu "
    "--size tiny` shows on any machine that the script works."
)
MIXED = (0.2, 0.4, 0.5, 0.6, 1.0)  # parts of the most steps, as users ask for them
Cell = dict[str, str]  # of one model, by the name of its row


class Bench:
    """One model on one device, eager or compiled."""

    def __init__(self, registry: ModelRegistry, name: str, sized: Sized, rows: int, options: Any) -> None:
        self.registry, self.name, self.sized, self.rows = registry, name, sized, rows
        self.side = 32 if options.size == "tiny" else sized.side
        self.steps = 3 if options.size == "tiny" else sized.steps
        self.compiler: Compiler | None = None

    @property
    def model(self) -> Any:
        return self.registry.get(self.name)

    @property
    def denoiser(self) -> Any:
        pipe = self.model.plain["text2img"]
        return getattr(pipe, spelling.family(pipe).denoiser)

    def task(self, name: str, **fields: Any) -> ImageTask:
        size = {"width": self.side, "height": self.side, "steps": self.steps, "cfg_scale": 7.0}
        return make_task(name, model=self.name, scheduler=self.sized.sampler, **{**size, **fields})

    def alike(self, count: int) -> list[ImageTask]:
        return [self.task(f"alike{i}", seed=i, prompt=f"{i} red dots") for i in range(count)]

    def mixed(self, count: int) -> list[ImageTask]:
        most = 5 if self.side == 32 else 2 * self.steps
        return [
            self.task(
                f"mixed{i}",
                seed=i,
                prompt=f"{i} red dots",
                steps=max(1, round(MIXED[i % 5] * most)),
                cfg_scale=(1.0, 4.0, 7.0, 9.0)[i % 4],
            )
            for i in range(count)
        ]

    def engine(self, tasks: list[ImageTask], late: ImageTask | None = None) -> tuple[float, float, float]:
        """Draw tasks by the engine: seconds in all, share of the time in which the device was idle, seconds of `late`.

        Args:
            late: an express request that comes when others are under way.
        """
        events: list[Any] = []
        engine = Engine(self.registry, emit=events.append, max_rows=self.rows, measure=False)
        engine.caller.compiler = self.compiler
        began = time.perf_counter()
        for task in tasks:
            engine.submit(task)
        came = took = steps = 0.0
        while engine.step():
            steps += 1
            if late is not None and not came and steps > 4:
                engine.submit(late)
                came = time.perf_counter()
            if came and not took and any(isinstance(e, Drawn) and e.request == "late" for e in events):
                took = time.perf_counter() - came
        seconds = time.perf_counter() - began
        for event in events:
            if isinstance(event, Undrawable | Complaint):
                raise RuntimeError(event.message if isinstance(event, Undrawable) else event.text)
        calls = [call for event in events if isinstance(event, Stepped) for call in event.calls]
        busy = sum(call.busy for call in calls)
        return seconds, 1 - sum(call.seconds for call in calls) / busy if busy else 0.0, took

    def plain(self, tasks: list[ImageTask]) -> float:
        """One call of the plain pipeline for all tasks, which are alike but for prompt and seed."""
        first = tasks[0]
        pipe = pipelines.prepare(self.model.plain["text2img"], first, self.model.scheduler_config)
        each = [spelling.arguments(pipe, task) for task in tasks]
        given = {name: [one[name] for one in each] for name in ("prompt", "generator")}
        began = time.perf_counter()
        with torch.inference_mode():
            for image in pipe(**{**each[0], **(given if len(tasks) > 1 else {})}).images:
                pipelines.to_bytes(image)
        return time.perf_counter() - began

    def warm(self, tasks: list[ImageTask]) -> None:
        """Draw until nothing is left to compile."""
        for _ in range(8):
            self.engine(tasks)
            if self.compiler is None or not self.compiler.working:
                return
            self.compiler.wait()

    def measure(self, rounds: int, peak: float) -> Cell:
        images = self.rows // 2
        alike, mixed = self.alike(images), self.mixed(2 * images)
        self.warm(alike)
        self.warm(mixed)
        self.warm(alike[:1])
        many = [t for k in range(3) for t in (self.task(f"{k}{t.request}", seed=t.seed) for t in alike)]
        self.plain(alike), self.plain(alike[:1])
        both = [(self.plain(alike), *self.engine(alike)[:2]) for _ in range(rounds)]
        alone = [(sum(self.plain([task]) for task in mixed), self.engine(mixed)[0]) for _ in range(rounds)]
        bare = [(self.plain(alike[:1]), self.engine(alike[:1])[0]) for _ in range(rounds)]
        late = [self.engine(many, self.task("late", express=True))[2] for _ in range(rounds)]
        compiled = {} if self.compiler is None else {"calls of compiled code": str(self.compiler.calls)}
        ms, share = self._call(peak)
        return {
            "equal requests, images a second": _text([images / ours for _, ours, _ in both]),
            "equal requests, over one perfectly batched plain call (aim 0.97)": _text(
                [p / o for p, o, _ in both]
            ),
            "mixed requests, over one at a time (aim 1.8)": _text([p / o for p, o in alone]),
            "device idle, equal requests (aim 3 %)": _text([100 * idle for *_, idle in both], " %"),
            "one request on an idle device, over a bare call (aim 1.05)": _text([o / p for p, o in bare]),
            "an express request among others, over a bare call": _text(
                [took / p for took, (p, _) in zip(late, bare, strict=True)]
            ),
            f"a denoiser's call of {self.rows} rows": f"{ms:.3g} ms",
            "its share of the matrix multiplication's peak (aim 45 %, SD 2.1 compiled)": f"{100 * share:.3g} %",
            **compiled,
        }

    def _call(self, peak: float) -> tuple[float, float]:
        """Milliseconds of a full call of the denoiser, and its share of the peak (FLOP a second)."""
        from torch.utils.flop_counter import FlopCounterMode

        seen: list[tuple[float, Any]] = []
        forward = self.denoiser.forward
        self.denoiser.forward = lambda *a, **k: seen.append((0.0, (a, k))) or forward(*a, **k)
        compiler, self.compiler = self.compiler, None
        try:
            self.engine(self.alike(self.rows // 2))
        finally:
            del self.denoiser.forward
            self.compiler = compiler
        args, given = seen[len(seen) // 2][1]
        module = self.denoiser if compiler is None else compiler.compiled(self.denoiser)
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                self.denoiser(*args, **given)
            module(*args, **given)
            seconds = timed(lambda: module(*args, **given), self.registry.device)
        return 1000 * seconds, counter.get_total_flops() / seconds / peak

    def switching(self, rounds: int, file: Path) -> Cell:
        """Two LoRAs by turns, over each by itself."""
        first, second = Lora("a", 1.0, path=str(file)), Lora("b", 0.5, path=str(file))
        halves = [
            [self.task(f"{lora.name}{i}", seed=i, loras=(lora,)) for i in range(self.rows // 4)]
            for lora in (first, second)
        ]
        turns = [task for pair in zip(*halves, strict=True) for task in pair]
        self.engine(turns)
        both = [(self.engine(turns)[0], sum(self.engine(half)[0] for half in halves)) for _ in range(rounds)]
        return {"two LoRAs by turns, over one after the other": _text([t / a for t, a in both])}


def timed(work: Callable[[], Any], device: str, times: int = 5) -> float:
    """Seconds, the median of several."""
    taken = []
    for _ in range(times):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def matrix_peak(device: str, dtype: torch.dtype, side: int) -> float:
    """FLOP a second of a large matrix multiplication, the fastest of 20."""
    one = torch.rand(side, side, device=device, dtype=dtype)
    one @ one
    return max(2 * side**3 / timed(lambda: one @ one, device, 1) for _ in range(20))


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _text(values: list[float], unit: str = "") -> str:
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3g}{unit}{spread}"


def markdown(columns: dict[str, Cell], facts: list[str]) -> str:
    """The table: a column for each model, eager and compiled."""
    names = list(dict.fromkeys(row for cells in columns.values() for row in cells))
    head = f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    body = "".join(
        f"| {name} | {' | '.join(cells.get(name, '') for cells in columns.values())} |\n" for name in names
    )
    return "\n".join(facts) + "\n\n" + head + body


def write(page: Path, text: str) -> None:
    """Put the table between its markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END} to write between")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether there is a GPU")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--models", nargs="+", default=list(SIZED), choices=list(SIZED))
    parser.add_argument("--rows", type=int, default=16, help="of a call of the denoiser")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", choices=("off", "regional", "full"), default="regional")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        raise SystemExit(3)
    if options.check:
        return
    warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # diffusers 0.42 with numpy 2
    dtype = pick_dtype(options.device)
    peak = matrix_peak(options.device, dtype, 8192 if options.size == "real" else 256)
    columns: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory(prefix="dreamdrop-gpu-") as place:
        for name in options.models:
            began = time.monotonic()
            columns |= _model(name, Path(place) / name, dtype, peak, options)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    on = (
        torch.cuda.get_device_name(options.device)
        if options.device.startswith("cuda")
        else platform.machine()
    )
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers"))
    facts = [
        f"{on}, {str(dtype).removeprefix('torch.')}, {packages}, {options.rows} rows a call, n = {options.rounds}.",
        f"A matrix multiplication reached {peak / 1e12:.3g} TFLOP a second. Medians with their range; random weights.",
    ]
    text = markdown(columns, facts)
    print(text)
    if options.write:
        write(options.write, text)


def _model(name: str, folder: Path, dtype: torch.dtype, peak: float, options: Any) -> dict[str, Cell]:
    sized = SIZED[name]
    save_sized(name, folder, options.device, dtype, tiny=options.size == "tiny")
    registry = ModelRegistry(Cards.of([f"{name}={folder}"]), device=options.device)
    bench = Bench(registry, name, sized, options.rows, options)
    about = sized.about if options.size == "real" else f"a tiny {name}"
    title = f"{about}, {bench.side} px, {bench.steps} steps"
    cells = {f"{title}, eager": bench.measure(options.rounds, peak)}
    if name == "sd21":
        cells[f"{title}, eager"] |= bench.switching(
            options.rounds, save_lora(folder, folder.with_name("lora"))
        )
    if options.compile != "off":
        heard: list[str] = []
        bench.compiler = Compiler(options.compile, complain=heard.append, after=1, backend=options.backend)
        cells[f"{title}, compiled ({options.compile})"] = bench.measure(options.rounds, peak)
        for complaint in heard:
            print(complaint, file=sys.stderr)
    return cells


if __name__ == "__main__":
    main()
