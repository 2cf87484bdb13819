"""What an operator puts beside models: ControlNets and IP-Adapters, by name. No torch here."""
