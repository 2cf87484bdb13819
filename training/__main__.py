"""The process that trains: `python -m training --work FOLDER`, or `accelerate launch -m training --work FOLDER`.

Each line on standard output is a JSON object with an `event`: plan, class pictures, start, step, checkpoint,
validation, warning; and as the last one done, stopped (by SIGTERM or SIGINT, after a checkpoint), refused or failed.
The exit code is 0 for done and stopped, 2 for refused, 1 for failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from schemas.errors import Rejected


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Train as FOLDER/training.json says."
    )
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="training.json lies here")
    parser.add_argument(
        "--finish", action="store_true", help="take no more steps: make the product of the newest checkpoint"
    )
    parser.add_argument("--tied", action="store_true", help="end at once when standard input ends")
    options = parser.parse_args()
    if options.tied:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    folder: Path = options.work
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: told.append(number))
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get among the events

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event, ensure_ascii=False), file=output, flush=True)

    from training.dreambooth import run
    from training.dreambooth.checkpoint import DiskFull
    from training.dreambooth.loop import NotFinite

    try:
        run.train(folder, say, lambda: bool(told), finish=options.finish)
    except Rejected as error:
        say({"event": "refused", "code": error.code, "field": error.field, "message": error.message})
        return 2
    except NotFinite as error:
        say({"event": "failed", "code": "non_finite", "step": error.step, "message": str(error)})
        return 1
    except DiskFull as error:
        say({"event": "failed", "code": "disk_full", "message": str(error)})
        return 1
    except OSError as error:
        say(
            {
                "event": "failed",
                "code": "files",
                "message": f"{error.filename or folder}: {error.strerror or error}",
            }
        )
        return 1
    except Exception as error:
        if not _out_of_memory(error):
            raise
        say({"event": "failed", "code": "out_of_memory", "message": _REMEDIES})
        return 1
    return 0


def _end_with_parent() -> None:
    """A parent that is killed cannot say so; its end of the pipe is closed. Another trainer goes on."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


_REMEDIES = (
    "the device's memory is not enough; in this order of effect: gradient_checkpointing true, method lora, "
    "batch_size 1 with a larger accumulation, optimizer adamw8bit, a smaller resolution, text_encoder false"
)


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


if __name__ == "__main__":
    sys.exit(main())
