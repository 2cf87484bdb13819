"""The parent's side of trainings: claims, heartbeats, inputs, checkpoints and the product in the store.

It holds the credentials and never imports torch; a child process trains (`python -m training`).
"""
