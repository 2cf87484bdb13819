"""The addons that a worker knows, looked up by the names in requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from infra.models.addons.controlnets import ControlNet, find_controlnets
from infra.models.addons.ip_adapters import IpAdapter, find_ip_adapters
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Addons:
    """ControlNets and IP-Adapters, by registered name."""

    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    ip_adapters: Mapping[str, IpAdapter] = field(default_factory=dict)

    @classmethod
    def of(
        cls, controlnets: Iterable[str] = (), ip_adapters: Iterable[str] = (), *, fetch: bool = False
    ) -> Self:
        """Read the operator's settings.

        Args:
            fetch: ask the hub for configs that are not here, and nothing large.

        Raises:
            Rejected: something is not there, or cannot be drawn with.
        """
        return cls(find_controlnets(controlnets, fetch=fetch), find_ip_adapters(ip_adapters))

    def controlnet(self, name: str, field: str, model: str = "", family: str = "") -> ControlNet:
        """The ControlNet of a name.

        Args:
            field: of the request, where the name stands.
            model, family: that it must fit; "": any.

        Raises:
            Rejected: unknown, or for models of another family.
        """
        if name not in self.controlnets:
            text = f"is {name[:60]!r}, which is not a ControlNet of this worker; {_known(self.controlnets)}"
            raise Rejected.of_field(field, text, "unknown_model")
        found = self.controlnets[name]
        _check_family(field, f"ControlNet {name}", found.family, model, family)
        return found

    def ip_adapter(self, name: str | None, model: str = "", family: str = "") -> IpAdapter:
        """The IP-Adapter of a name; without one the only one that fits a model. Raises as `controlnet` does."""
        if name is None:
            fitting = [one for one in self.ip_adapters.values() if not family or one.family in ("", family)]
            if len(fitting) == 1:
                return fitting[0]
            fit = f"{len(fitting) or 'none'} of this worker's IP-Adapters fit {model}"
            text = f"is left out, and {fit}; {_known(self.ip_adapters)}"
            raise Rejected.of_field("ip_adapter.name", text, "unknown_model")
        if name not in self.ip_adapters:
            text = f"is {name[:60]!r}, which is not an IP-Adapter of this worker; {_known(self.ip_adapters)}"
            raise Rejected.of_field("ip_adapter.name", text, "unknown_model")
        found = self.ip_adapters[name]
        _check_family("ip_adapter.name", f"IP-Adapter {name}", found.family, model, family)
        return found


def _known(names: Iterable[str]) -> str:
    return f"known are {', '.join(found)}" if (found := sorted(names)) else "none is known"


def _check_family(field: str, what: str, of: str, model: str, family: str) -> None:
    if of and family and of != family:
        text = f"names {what}, which is made for models of the family {of}; {model} is of {family}"
        raise Rejected.of_field(field, text, "unsupported")
