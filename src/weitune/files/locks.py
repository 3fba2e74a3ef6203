"""Kernel locks on open files: the kernel frees them when their process ends, for whatever reason."""

from __future__ import annotations

import errno
import os
import sys

_NO_LOCKS = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}
_LOCKED_BYTE = 1 << 30
"""Position of the byte that is locked on Windows, behind the contents: others cannot read a locked byte."""


def acquire(descriptor: int, *, shared: bool = False) -> bool | None:
    """Return whether the lock of an open file was acquired, at once; None if the file system has no locks.

    Several processes may hold a ``shared`` one. The position in the file may change.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True
