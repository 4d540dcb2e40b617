"""What went wrong on the user's side, and what to do about it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class UserError(Exception):
    """Bad input. `main` prints the two lines and exits with 2; a traceback is left to our own bugs.

    Args:
        cause: one line that says what is wrong, with the offending value.
        cure: one line that says what to do about it.
    """

    exit_code = 2

    def __init__(self, cause: str, cure: str):
        super().__init__(cause, cure)
        self.cause, self.cure = cause, cure

    def __str__(self) -> str:
        return f"{self.cause}\n  cure: {self.cure}"


class Preempted(Exception):
    """The run was asked to stop (SIGTERM) and has saved its state."""

    exit_code = 75


class NonFinite(Exception):
    """A loss or metric stopped being finite; the message names the step and the ids of the batch."""

    exit_code = 77


class PeerLost(Exception):
    """Another process of the job did not come, or went away."""

    exit_code = 76


# What a disk answers that takes no more, and what it answers to a reader as well.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_EITHER = (errno.EACCES, errno.EPERM, errno.EIO)

FREE = "free or remount the disk, or use another --workdir; what was saved before is kept"


def as_disk_error(error: Exception, path: object = None) -> UserError | None:
    """`error` as a UserError if it is a disk's, be it told by Python or by the storage library.

    Args:
        path: what was being written, if that is known.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
        code = int(found[1])
    named = getattr(error, "filename", None)
    if code in _EITHER:
        cause = f"cannot read or write {named or path or 'a file'}: {os.strerror(code)}"
        return UserError(cause, "see that the disk is sound, and that this user may read and write there")
    if code not in _FULL and not (path and isinstance(error, OSError)):
        return None
    cause = f"cannot write {path or named or 'to disk'}: {os.strerror(code) if code else error}"
    return UserError(cause, FREE)


@contextlib.contextmanager
def storing(path: object) -> Iterator[None]:
    """Turn the errors of a disk that is being written to into a UserError that names `path`."""
    try:
        yield
    except (OSError, ValueError) as e:
        if refused := as_disk_error(e, path):
            raise refused from e
        raise
