"""Train into a small disk, leave only the newest checkpoint, and train again: OUTPUT, arguments."""

import shutil
import sys
from pathlib import Path

from quickdraw_dist import train
from quickdraw_dist.run.checkpoint import files

output, arguments = sys.argv[1], sys.argv[2:]
print("code", train.main(arguments))
newest = files.newest(output)
assert newest is not None
print("newest", newest.meta["step"])
for step in files.steps(output):
    if step != newest.meta["step"]:
        shutil.rmtree(Path(files.folder(output), files.name(step)))
arguments[arguments.index("--checkpoint.keep_last") + 1] = "1"
print("code", train.main(arguments))
