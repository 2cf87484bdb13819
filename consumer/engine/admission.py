"""The engine's policy: which task begins next, and which images share the next device call. No torch here.

Tasks with equal *batch keys* can share UNet calls. A task begins when the calls of its key have a
free row, so that the device is always full and no more images than needed hold memory. An image of several passes has a
key for each; it begins when none of them is full of images that have come so far. Tasks of the
express lane begin first, and each lane has rows of its own: neither waits for the other's images to end.

The device is shared by time, not by the number of calls. The express lane gets three quarters of it while both
lanes have calls, and all of it otherwise. Inside a lane, each batch key gets an equal share: a large picture
whose steps take seconds waits until the small ones have had as many seconds. This is start-time fair queueing
(Goyal, Vin, Cheng 1996). Who comes anew begins at the time of the one that was served last: it is owed nothing
for the time that it was away, and goes before those that were served since.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from consumer.engine.in_flight import fitting
from consumer.engine.passes import models_of, passes_of
from schemas.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

    from consumer.engine.in_flight import InFlight
    from consumer.renderer.protocol import ImageTask, Lora

#: Whether it is the express lane, and the batch keys of the passes.
LaneKey = tuple[bool, "tuple[Hashable, ...]"]

_KINDS = ("text", "encode", "decode", "side", "unet")  # short calls first: they let images begin and end
_BATCH_KEYS = 4  # sizes, models or LoRA sets that may be drawn side by side, each with full calls
EXPRESS_SHARE = 3.0  # parts of the device's time for the express lane, for each one of the other
_STAY = 0.1  # seconds for which a batch key goes on: a switch to other LoRAs takes about 2 ms
_KEPT = 1000  # batch keys whose time is kept: sizes and solo requests come and go
_MEASURED = 1000  # batch keys whose row limit is kept: sizes and solo requests come and go


class Models(Protocol):
    """What admission asks of the model registry."""

    def loaded(self) -> list[str]: ...

    def fits(self, name: str, in_use: Collection[str], *others: str) -> bool: ...

    def guides_fit(self, task: ImageTask, in_use: Collection[str]) -> bool: ...

    def joins(self, name: str) -> bool: ...


def batch_key(task: ImageTask) -> Hashable:
    """Tasks with equal keys can share UNet calls."""
    return (task.model, task.width, task.height, acting(task), task.request if task.solo else None)


def acting(task: ImageTask) -> tuple[Lora, ...]:
    """The LoRAs that change its picture, in one order: whoever names the same ones shares calls."""
    if len(task.loras) < 2 and all(lora.weight for lora in task.loras):
        return task.loras
    return tuple(sorted((lora for lora in task.loras if lora.weight), key=repr))


def rows_of(task: ImageTask) -> int:
    """UNet rows at each step, as far as a task tells before its first call: guidance needs a second one."""
    return 2 if task.cfg_scale > 1 else 1


class AdmissionQueue:
    """Tasks that have not begun, by lane and batch key."""

    def __init__(self, models: Models, max_rows: int, patience: int) -> None:
        """
        Args:
            max_rows: of a UNet call.
            patience: how many younger tasks, of either lane, may overtake one whose model is not loaded.
        """
        self._models = models
        self._max_rows = max_rows
        self._patience = patience
        self._overtaken = 0
        self._arrivals = 0
        self._queues: dict[LaneKey, deque[tuple[int, ImageTask]]] = {}
        self._limits: dict[Hashable, int] = {}  # UNet rows that pay and fit, by batch key, as last measured

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, task: ImageTask) -> None:
        self._arrivals += 1
        key = (task.express, tuple(map(batch_key, passes_of(task))))
        queue = self._queues.setdefault(key, deque())
        queue.append((self._arrivals, _sharing_pictures(task, queue[-1][1]) if queue else task))

    def drop(self, request: str) -> None:
        """Forget every task of a request."""
        for key in list(self._queues):
            self._keep(key, deque(entry for entry in self._queues[key] if entry[1].request != request))

    def set_limit(self, key: Hashable, rows: int) -> None:
        """Note how many UNet rows of a batch key each lane may have in flight; before that it is `max_rows`."""
        if len(self._limits) > _MEASURED:
            self._limits.clear()
        self._limits[key] = rows

    def next(self, in_flight: Collection[InFlight]) -> ImageTask | None:
        """Take the next task to begin, or None when nothing can begin now.

        The express lane goes first, then the oldest, except that models in memory go before models that
        would push another out, so that requests which alternate between models do not load them by turns.
        A task that was overtaken `patience` times stops all others until its model can be loaded; an express
        task stops the other lane at once.
        """
        if not self._queues:
            return None
        keys = sorted(self._open(in_flight), key=lambda key: (not key[0], self._age(key)))
        if not keys:
            return None
        unloaded = [key for key in keys if not self._fits(key, self._models.loaded())]
        longest = min(map(self._age, unloaded), default=self._arrivals)
        for key in keys:
            if keys[0][0] and not key[0]:
                break
            overtakes = self._age(key) > longest
            if key not in unloaded and not (overtakes and self._overtaken >= self._patience):
                self._overtaken += overtakes
                return self._take(key)
        wanted = keys[0] if self._overtaken < self._patience else min(unloaded, key=self._age)
        if self._fits(wanted, {one.model for image in in_flight for one in image.passes}):
            self._overtaken = 0
            return self._take(wanted)
        return None

    def _open(self, in_flight: Collection[InFlight]) -> list[LaneKey]:
        """The lanes and keys that have a free row."""
        rows: Counter[tuple[bool, Hashable]] = Counter()
        lanes: Counter[bool] = Counter()
        for image in in_flight:
            taken = image.rows or rows_of(image.task)
            rows[image.task.express, image.batch_key] += taken
            lanes[image.task.express] += taken
        models = {one.model for image in in_flight for one in image.passes}
        alone = {name for name in models if not self._models.joins(name)}
        full = lanes.total() >= _BATCH_KEYS * self._max_rows  # every image in flight holds memory
        return [
            key
            for key in self._queues
            if all(rows[key[0], one] < self._limits.get(one, self._max_rows) for one in key[1])
            and alone.isdisjoint(models_of(self._queues[key][0][1]))
            and not (full and lanes[key[0]] >= self._max_rows)
        ]

    def _age(self, key: LaneKey) -> int:
        return self._queues[key][0][0]

    def _fits(self, key: LaneKey, in_use: Collection[str]) -> bool:
        """Whether the models of the key's next task and what guides it are in memory, or can be.

        Without pushing out a model that is in use.
        """
        task = self._queues[key][0][1]
        first, *others = models_of(task)
        guided = bool(task.controls or task.ip_adapter)
        try:
            fits = self._models.fits(first, in_use, *others)
            return fits and not (guided and not self._models.guides_fit(task, in_use))
        except (Rejected, Unavailable):
            return True  # let it begin: that will report what is wrong

    def _take(self, key: LaneKey) -> ImageTask:
        _, task = self._queues[key].popleft()
        self._keep(key, self._queues[key])
        return task

    def _keep(self, key: LaneKey, queue: deque[tuple[int, ImageTask]]) -> None:
        if queue:
            self._queues[key] = queue
        else:
            del self._queues[key]


def _sharing_pictures(task: ImageTask, earlier: ImageTask) -> ImageTask:
    """The task with the pictures of an earlier one of its request: each came over the pipe with a copy of its own."""
    names = ("image", "mask", "pictures")
    if task.request != earlier.request or any(getattr(task, one) != getattr(earlier, one) for one in names):
        return task
    return replace(task, **{one: getattr(earlier, one) for one in names})


class FairShares:
    """Time that several names have had, as needed to share it."""

    def __init__(self, weights: Mapping[Hashable, float] | None = None, stay: float = 0.0) -> None:
        """
        Args:
            weights: parts of the time for each name; 1 without one.
            stay: seconds by which the one that was served last may be ahead and still goes on.
        """
        self._weights = weights or {}
        self._stay = stay
        self._last: Hashable = None
        self._had: dict[Hashable, float] = {}  # seconds by weight
        self._now = 0.0  # what the one with least had when one was served last

    def next(self, names: Sequence[Hashable]) -> Hashable:
        """The one that has had least, of equals the first; or the last one again."""
        least = min(names, key=self._start) if len(names) > 1 else names[0]
        self._now = max(self._now, self._start(least))
        stays = self._last in names and self._start(self._last) < self._start(least) + self._stay
        return self._last if stays else least

    def charge(self, name: Hashable, seconds: float) -> None:
        """Note that one of them had the device for so long."""
        self._last = name
        self._had[name] = self._start(name) + seconds / self._weights.get(name, 1.0)
        if len(self._had) > _KEPT:
            self._had = {name: had for name, had in self._had.items() if had > self._now}

    def _start(self, name: Hashable) -> float:
        return max(self._had.get(name, 0.0), self._now)


class Turns:
    """The shares of one device."""

    def __init__(self) -> None:
        self._lanes = FairShares({True: EXPRESS_SHARE})
        self._keys = {express: FairShares(stay=_STAY) for express in (True, False)}

    def next(self, paused: Sequence[InFlight]) -> tuple[bool, Hashable]:
        """The lane (True: express) and the batch key whose calls run now.

        Args:
            paused: not empty; the oldest call first.
        """
        lanes = sorted({image.task.express for image in paused}, reverse=True)  # of equals the express lane
        express = bool(self._lanes.next(lanes))
        keys = dict.fromkeys([image.batch_key for image in paused if image.task.express == express])
        return express, self._keys[express].next(list(keys))

    def charge(self, express: bool, key: Hashable, seconds: float) -> None:
        """Note how long a call of a lane and a batch key took."""
        self._lanes.charge(express, seconds)
        self._keys[express].charge(key, seconds)


def next_group(
    in_flight: Iterable[InFlight],
    limit: Callable[[str, Hashable], int],
    turns: Turns,
    *,
    fill: bool = False,
) -> list[InFlight]:
    """The images whose calls run now, as one: of one kind and key, as many rows as fit.

    Those of the batch key whose turn it is go first, and of each the oldest.

    Args:
        limit: UNet, VAE or text encoder rows that a call of this kind and key may have.
        turns: whose lane and batch key goes first.
        fill: give rows that are left to the other lane: calls are padded, so those cost nothing. Otherwise
            they would make the express lane wait.
    """
    paused = [image for image in in_flight if image.paused_in is not None]
    if not paused:
        return []
    paused.sort(key=_ticket)
    express, batch = turns.next(paused)
    of_turn = [image for image in paused if image.task.express == express and image.batch_key == batch]
    first = min(of_turn, key=_order)  # of equals the oldest
    if first.call.own is not None:  # sizes share it, so those that are not there yet go first, as within one
        near = [
            image
            for image in paused
            if image.task.express == express and image.task.model == first.task.model
        ]
        first = min(near, key=lambda image: (_order(image), image.batch_key != batch))
        batch = first.batch_key
    kind, key = first.call.kind, _group_key(first)
    mates = [image for image in paused if image.call.kind == kind and _group_key(image) == key]
    mates.sort(key=lambda image: image.batch_key != batch)
    others = [image for image in mates if image.task.express != express]
    if others:
        mates = [image for image in mates if image.task.express == express] + (others if fill else [])
    if kind == "text":
        return mates  # equal prompts are encoded once, so rows say little
    return fitting(mates, lambda call: max(limit(kind, call.limits), first.call.rows))


def _ticket(image: InFlight) -> int:
    return image.call.ticket


def _order(image: InFlight) -> int:
    return _KINDS.index(image.call.kind)


def _group_key(image: InFlight) -> Hashable:
    """What must agree for two images to share a call."""
    return (image.call.key, image.task.request if image.task.solo else None)
