"""The `Accept` header (RFC 9110, section 12.5.1): how much a caller likes each kind of answer."""

from __future__ import annotations

from starlette.requests import Request

JSON, HTML, OCTETS = "application/json", "text/html", "application/octet-stream"
#: The types of pictures, and a manifest's names of them.
FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}


def quality(header: str, kind: str) -> tuple[float, int]:
    """How much a caller likes a kind of content, and how exactly it says so.

    Returns:
        Its q, 0 to 1 (0 for what is not accepted); and 3 where the header names the kind, 2 for `image/*`, 1 for
        `*/*`, 0 where it says nothing.
    """
    exactness = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1}
    best = (0.0, 0)
    for part in header.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        if exactness.get(name, 0) > best[1]:
            best = (_q(parameters), exactness[name])
    return best


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 1.0
    return 1.0


def wants_page(request: Request) -> bool:
    """Whether a browser asks for something to look at: it names HTML, and likes JSON no more."""
    header = ",".join(request.headers.getlist("accept"))
    html = quality(header, HTML)
    return html[1] == 3 and html[0] > 0 and html[0] >= quality(header, JSON)[0]


def type_for(request: Request, own: str) -> str:
    """The Content-Type of a file: its own, or plain octets where the caller asks for those and not for its own."""
    header = ",".join(request.headers.getlist("accept"))
    plain = quality(header, OCTETS)
    return OCTETS if plain[1] == 3 and plain[0] > quality(header, own)[0] else own
