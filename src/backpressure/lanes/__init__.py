"""One line of sequence numbers over two tiers: a ring, and the disk below it.

lane.py          Lane: a priority's events in memory
handout.py       Handout: one delivery of some of them
durable_lane.py  DurableLane: the same, with its ring in a file and a disk tier
durable_open.py  its ring, opened as an earlier run left it
ring_debt.py     what a ring from before a reboot owes
spiller.py       Spiller: the thread that moves events from the rings to disk
stats.py         LaneStats, DiskStats
"""
