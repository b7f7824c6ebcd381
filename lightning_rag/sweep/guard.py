"""Runs a job on a node of a cluster, as long as the worker that asked for it lives.

    python -m lightning_rag.sweep.guard WORD…

A Ray worker that is killed can leave its child processes behind: a run would go on unseen, and
write into the folder where another process continues it. This asks the system for its end with the
worker's, and becomes the run; where the system has no such thing (it is Linux that has), Ray's own
clearing up has to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <sys/prctl.h>; it outlasts the change of program


def main() -> None:
    """Become `python -m lightning_rag.cli WORD…`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    os.execv(sys.executable, [sys.executable, "-m", "lightning_rag.cli", *sys.argv[1:]])


if __name__ == "__main__":
    main()
