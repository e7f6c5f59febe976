"""Rings of variable-length messages."""
