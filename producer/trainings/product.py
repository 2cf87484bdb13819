"""What came of a training that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.result import Result


def product_of(result: Result) -> str:
    """The model that a training has published, as `name@version`; "" where it has published none."""
    model = result.model
    return f"{model.name}@{model.revision}" if model is not None and result.status == "succeeded" else ""
