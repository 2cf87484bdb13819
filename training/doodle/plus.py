"""Draws pictures of a plus, a shape that `doodle` does not know, each with its caption, to try a training out.

python -m training.doodle.plus photos
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#d43c32", "blue": "#2850c8", "green": "#2f9e53", "yellow": "#f0cd3c", "white": "#fafafa"}


def main(folder: Path, count: int = 8) -> None:
    """Write `<n>.png` and `<n>.txt` into a folder; the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for number in range(1, count + 1):
        colour, ground = chance.sample(sorted(COLOURS), 2)
        x, y, arm = (chance.randint(low, high) for low, high in ((56, 72), (56, 72), (32, 42)))
        picture = Image.new("RGB", (128, 128), COLOURS[ground])
        pen = ImageDraw.Draw(picture)
        pen.rectangle((x - arm, y - arm // 3, x + arm, y + arm // 3), fill=COLOURS[colour])
        pen.rectangle((x - arm // 3, y - arm, x + arm // 3, y + arm), fill=COLOURS[colour])
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} sks shape on a {ground} background\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photos"))
