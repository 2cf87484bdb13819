"""`dreamdrop bench`: how fast this machine draws with a model, and the worker's settings that follow from that."""
