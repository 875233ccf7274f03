"""A rank that prints SIGTERM when it gets one and ends well as soon as the file MARK is there."""

import os
import signal
import sys
import time
from pathlib import Path

from quickdraw_dist.distributed.exits import leave

signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
print("ready", os.getpid(), os.getppid(), flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
leave(0)
