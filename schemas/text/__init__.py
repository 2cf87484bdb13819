"""Recipes and prompts as text: A1111's lines below a picture, other programs' forms, and prompt syntax."""
