"""The errors that end a run with an exit code of their own, and how a disk's errors become one of them."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

# What ends a line. The name of a file or class may hold it, and a library's message.
LINE_ENDS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class UserError(Exception):
    """Bad input. `main` prints its two lines and exits with 2; only our own bugs print a traceback.

    Args:
        cause: one line about what is wrong, with the offending value. What would end the line is written as Python
            does, such as \\n.
        cure: one line about what to do.
    """

    exit_code = 2

    def __init__(self, cause: str, cure: str):
        cause, cure = (LINE_ENDS.sub(lambda end: repr(end[0])[1:-1], text) for text in (cause, cure))
        super().__init__(cause, cure)
        self.cause, self.cure = cause, cure

    def __str__(self) -> str:
        return f"{self.cause}\n  cure: {self.cure}"


class MissingInput(UserError):
    """A dataset or file that a config names is not there. A dry run lists it among what is to be obtained."""


class Preempted(Exception):
    """The run was asked to stop (SIGTERM) and has saved its state."""

    exit_code = 75


class NonFinite(Exception):
    """A loss or metric stopped being finite; the message names the step and the ids of the batch."""

    exit_code = 77


class PeerLost(Exception):
    """Another process of the job did not join, or is gone."""

    exit_code = 76


# Error numbers of writing alone, and of reading or writing.
_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_EITHER = (errno.EACCES, errno.EPERM, errno.EIO)

FREE = "free or remount the disk, or write elsewhere (--workdir, --out); what was saved before is kept"


def as_disk_error(error: Exception, path: object = None) -> UserError | None:
    """Return a UserError if `error`, from Python or the storage library, is a fault of the disk, else None.

    Args:
        path: what was being written, if that is known.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
        code = int(found[1])
    file = getattr(error, "filename", None)
    if code in _EITHER:
        cause = f"cannot read or write {file or path or 'a file'}: {os.strerror(code)}"
        return UserError(cause, "check the disk, and that this user may read and write there")
    if code not in _WRITE and not (path and isinstance(error, OSError)):
        return None
    cause = f"cannot write {path or file or 'to disk'}: {os.strerror(code) if code else error}"
    return UserError(cause, FREE)


@contextlib.contextmanager
def report_disk_errors(path: object) -> Iterator[None]:
    """Turn the disk's errors while `path` is written into a UserError that names it."""
    try:
        yield
    except (OSError, ValueError) as e:
        if disk_error := as_disk_error(e, path):
            raise disk_error from e
        raise


@contextlib.contextmanager
def raise_value_errors() -> Iterator[None]:
    """Turn a UserError into a ValueError, as users of scikit-learn expect."""
    try:
        yield
    except UserError as e:
        raise ValueError(f"{e.cause}; {e.cure}") from e
