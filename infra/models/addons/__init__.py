"""ControlNets and IP-Adapters that an operator registers by name. No torch here."""
