"""A fault drill: what metrics show while a sink is down, its disk is full, and a burst
comes. `python -m bench.drill`
"""
