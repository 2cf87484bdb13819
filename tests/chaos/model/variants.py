"""Nine ways to break the protocol, and what the search must answer to each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.chaos.model.state import Day


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule broken on purpose, on the smallest day that shows it."""

    what: str
    day: Day
    breaks: str
    steps: int  # of the shortest trace

    @property
    def unbroken(self) -> Day:
        return replace(self.day, broken="")


VARIANTS = [
    Variant("the result is put, not created: the last writer wins", Day(broken="result put"), "I1", 13),
    Variant("an image is put, not created", Day(broken="image put"), "I2", 13),
    Variant("on meeting another's image, its own hash is kept", Day(broken="own hash"), "I2", 13),
    Variant(
        "own images are deleted when the commit is not the first, or not answered",
        Day(outages=1, broken="images deleted"),
        "I2",
        6,
    ),
    Variant("the request object is taken away before the claim", Day(broken="request first"), "I3", 1),
    Variant("claims expire, whatever the result", Day(broken="claims expire"), "I3", 5),
    Variant("the result is looked for before the claim only", Day(cancels=1, broken="look first"), "E1", 5),
    Variant("the result is created before the images", Day(broken="result first"), "I2", 5),
    Variant("nobody sweeps", Day(crashes=1, broken="no sweep"), "I4", 3),
]
