"""A rank that prints the signals it gets and ends only with its parent."""

import os
import signal
import time

from quickdraw_dist.base.process.parent import die_with_parent

die_with_parent()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
print("ready", os.getpid(), os.getppid(), flush=True)
time.sleep(600)
print("still here", flush=True)
