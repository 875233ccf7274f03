"""How every job ends: 0 done, 2 refused with one clear line, 1 for trouble of the moment."""

from __future__ import annotations

import sys
from collections.abc import Callable

from quickdraw_dist.errors import RefusedError
from quickdraw_dist.storage import StorageError


def run(main: Callable[[], None]) -> None:
    """Run a job's main; errors meant for its user are shown without a traceback."""
    try:
        main()
    except RefusedError as error:
        sys.exit(_say(error, 2))
    except StorageError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on from here", 130))


def _say(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
