"""The training command with a fault in one rank: STEP PHASE ACTION RANK, then its arguments."""

import os
import sys

from quickdraw_dist import train
from quickdraw_dist.distributed.exits import leave
from tests.support.processes import faults

step, phase, action, rank, *arguments = sys.argv[1:]
if os.environ.get("RANK", "0") == rank:
    faults.at(step=int(step), phase=phase, do=getattr(faults, action))
leave(train.main(arguments))
