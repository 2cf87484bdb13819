"""`python -m tests.chaos.model`: search the large days, and print a table.

`--short` searches those of the test run; `--most` refuses what has more states than memory allows
(about 350 bytes each). Ends with 1 when an invariant breaks.
"""

from __future__ import annotations

import argparse
import sys

from tests.chaos.model.check import explore
from tests.chaos.model.days import LONG, SHORT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.model", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the small days only")
    parser.add_argument("--most", type=int, default=20_000_000, help="states in one day")
    parser.add_argument("--day", type=int, help="one of the days only, from 1")
    args = parser.parse_args()
    print("| day | states | transitions | seconds | found |\n|---|---|---|---|---|")
    broken = 0
    days = SHORT if args.short else LONG
    for day in days if args.day is None else days[args.day - 1 : args.day]:
        found = explore(day, args.most)
        verdict = found.broken or "nothing broken"
        row = (str(day), f"{found.states:,}", f"{found.transitions:,}", f"{found.seconds:.0f}", verdict)
        print(f"| {' | '.join(row)} |", flush=True)
        if found.broken:
            broken += 1
            print(found, flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
