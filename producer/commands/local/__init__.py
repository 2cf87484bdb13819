"""Commands that start workers and servers on this machine: the demo, the stack, and what `up` and `serve` need."""
