"""How fast a backlog is drawn: ours against plain diffusers, one at a time and perfectly batched.

In each round every contender draws the same backlog once, in turning order; a ratio is taken
within a round. A contender whose pixels are not those of the plain pipeline is out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import backlogs, contenders
from tests.benchmarks.contenders import Child, Run
from tests.benchmarks.models import SIDES
from tests.benchmarks.table import Row, Table
from tests.studio import grey_levels_apart

if TYPE_CHECKING:
    from consumer.engine.loading.registry import ModelRegistry
    from consumer.renderer.protocol import ImageTask

Contender = Callable[["list[ImageTask]"], Run]
Round = dict[str, Run]

#: model: images and steps of the homogeneous backlog, images and most steps of the mixed one
_SIZES = {
    "launch": (32, 20, 40, 50),
    "mixed": (24, 20, 24, 50),
    "flux": (32, 20, 40, 50),
    "doodle": (16, 10, 16, 20),
}
_QUICK = {
    "launch": (16, 8, 16, 10),
    "mixed": (16, 4, 16, 10),
    "flux": (16, 8, 16, 10),
    "doodle": (8, 3, 8, 5),
}
_TOLERANCE = 1  # grey levels, in float32


def measure(registry: ModelRegistry, child: Child, models: list[str], table: Table, quick: bool) -> None:
    """Every model with both backlogs."""
    players: dict[str, Contender] = {
        "one": partial(contenders.one_at_a_time, registry),
        "batched": partial(contenders.batched, registry),
        "engine": partial(contenders.engine, registry),
        "child": child.draw,
    }
    for model in models:
        count, steps, mixed_count, most_steps = (_QUICK if quick else _SIZES)[model]
        side = SIDES[model]
        alike = partial(backlogs.homogeneous, model, side, count, steps)
        table.head(f"Homogeneous backlog, {model}", f"{count} images, {steps} steps, cfg 7.5, {side} px")
        _report(play(players, alike, quick), table, mixed=False)
        mix = partial(backlogs.mixed, model, side, mixed_count, most_steps)
        table.head(
            f"Mixed backlog, {model}",
            f"{mixed_count} images, {most_steps // 5} to {most_steps} steps, cfg 1 to 9, three tasks",
        )
        _report(play(players, mix, quick), table, mixed=True)


def play(
    players: dict[str, Contender], backlog: Callable[[int], list[ImageTask]], quick: bool
) -> list[Round]:
    """Rounds, as many as the time allows: two at least, five at most; the first one warms up."""
    for draw in players.values():
        draw(backlog(0)[:2])
    rounds: list[Round] = []
    ends = time.monotonic() + (4 if quick else 25)
    order = list(players)
    while len(rounds) < 2 or (len(rounds) < 5 and time.monotonic() < ends):
        tasks = backlog(1 + len(rounds))
        runs = {name: players[name](tasks) for name in order}
        allowed = max([_TOLERANCE, *_apart(runs["batched"], runs["one"])])
        for name, run in runs.items():
            _check(name, runs["one"], run, allowed)
        rounds.append(runs)
        order = order[1:] + order[:1]
    return rounds


def _apart(run: Run, plain: Run) -> list[int]:
    return [grey_levels_apart(a, b) for a, b in zip(run.pictures, plain.pictures, strict=True)]


def _check(name: str, plain: Run, run: Run, allowed: int) -> None:
    """No further from one at a time than diffusers' own batches are: last bits depend on the batch size."""
    for i, off in enumerate(_apart(run, plain)):
        if off > allowed:
            raise RuntimeError(f"{name}: image {i} is {off} grey levels off the plain pipeline's")


def _report(rounds: list[Round], table: Table, *, mixed: bool) -> None:
    def ratio(what: str, slow: str, fast: str, aim: str = "", png: bool = False) -> None:
        pick = (lambda run: run.seconds_with_png) if png else (lambda run: run.seconds)
        table.add(Row(what, [pick(r[slow]) / pick(r[fast]) for r in rounds], aim))

    plain = "plain, batched by equal parameters" if mixed else "plain, perfectly batched"
    aim = "" if mixed else "aim 0.95"
    ratio(f"engine over {plain}, pixels", "batched", "engine", "aim 1.8" if mixed else aim)
    ratio(f"renderer child over {plain}, PNG", "batched", "child", aim, png=True)
    ratio(f"{plain} over one at a time", "one", "batched")
    ratio("engine over one at a time, pixels", "one", "engine")
    ratio("renderer child over one at a time, PNG", "one", "child", png=True)
    last = rounds[-1]
    calls = ", ".join(f"{name} {last[name].unet_calls}" for name in ("one", "batched", "engine"))
    table.say(f"UNet calls: {calls}")
    table.add(
        Row(
            "useful rows of the engine's UNet calls",
            [r["engine"].slot_efficiency or 0.0 for r in rounds],
            "aim 85",
            "%",
        )
    )
    for name, aim in (("engine", "aim 3"), ("batched", "")):
        table.add(
            Row(
                f"device idle between first and last step, {name}",
                [r[name].idle or 0.0 for r in rounds],
                aim,
                "%",
            )
        )
