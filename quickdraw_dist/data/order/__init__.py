"""The order of training drawings: pure functions of sizes, seed, epoch and position, without I/O.

Read `order.py` first, then `share.py` (ranks), `schedule.py` (what a rank reads when), `memory.py`
(what a loader holds) and `digest.py` (the proof that the order was kept).
"""
