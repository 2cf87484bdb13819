"""The facade: HTTP in front of a store, for callers who want the picture in the answer."""
