"""Rings of fixed-size records of a numpy dtype."""
