"""What requests will take: their work in steps, what workers have measured, and what waits before them."""
