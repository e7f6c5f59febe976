"""Vocabulary: time, errors, priorities, what a buffer tells. No thread, no I/O, no
policy.
"""
