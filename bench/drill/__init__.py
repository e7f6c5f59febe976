"""A fault drill: what metrics show through faults. `python -m bench.drill`

A sink that is down, a disk that is full, a burst that comes.
"""
