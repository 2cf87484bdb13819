"""What a renderer child may know: its parent's environment without anything that looks like a secret.

The child runs other people's code on strangers' requests, and needs no credentials. So a hub token has
no effect there: gated models are downloaded beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET = re.compile(r"^AWS_|SECRET|TOKEN(?!IZERS)|PASSW|CREDENTIAL|KEY|^DREAMDROP_", re.IGNORECASE)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What may be passed on, by name."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}
