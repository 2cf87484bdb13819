"""Samplers: their steps by tables, derived from diffusers' own schedulers."""
