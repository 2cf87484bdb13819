"""Strangers' picture files become pixels in a child process that holds no credentials.

`process.Decoders` is the parent's side; `python -m infra.decoding` is the child, which `frames` connects to it.
A picture that crashes a codec, or asks it for too much memory or time, costs a child and its own request.
"""
