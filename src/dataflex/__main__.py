"""`python -m dataflex`."""

import atexit
import os
import sys
import threading

from dataflex.cli import main


def leave(status: int) -> None:
    """End a rank whose work is done. What Python has to do at exit is done; what C++ would do is left out: destructors of
    process groups now and then abort ("terminate called without an active exception"), and the run would count as failed."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    status = main()
    if "LOCAL_RANK" in os.environ:
        leave(status)
    sys.exit(status)
