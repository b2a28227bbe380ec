"""Starts `mailkeep` processes quickly: imports everything once and forks for each, with an environment of its own.

A child is a process like any other, in its own session: it runs the command line from `main` on, and dies by `kill -9`. Orders
are lines of JSON on stdin (`environ`, `arguments`, `log`, `fault`), answered by the child's number; at the end of stdin whatever
lives is killed. `fault` names a bug of `seeded_faults` to break the child with.
"""

import gc
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from mailkeep.__main__ import main


def tend() -> None:
    """Serve orders until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    children: list[int] = []
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            live(order)
        children.append(pid)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def live(order: dict[str, Any]) -> NoReturn:
    """Be the process that was ordered."""
    code: object = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(order["environ"])
        if order["fault"]:
            from seeded_faults import seed

            seed(order["fault"])
        sys.argv = ["mailkeep", *order["arguments"]]
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - it must not go on as a second nursery
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    tend()
