"""`python config/tether.py PARENT_PID PROGRAM ARGUMENT…`: become PROGRAM, which dies when its parent does.

Standing between fork and the program, it needs no code to run in a half-made child of a process with threads. The
kernel ties the signal to the parent's thread, so a parent starts its trainer from the thread that lives longest.
Where the kernel has no such signal (it is Linux's own), the next worker kills what is left instead. It is run by its
path: as a module of its package it would set Django's settings in the program's environment.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 -- no shell is what we want


if __name__ == "__main__":
    main()
