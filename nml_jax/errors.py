"""What went wrong on the user's side, and what to do about it."""

import contextlib
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


@contextlib.contextmanager
def storage(path: object) -> Iterator[None]:
    """Turn the errors of a disk that takes no more into a UserError that names `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e.strerror or e}", "free or remount the disk, or use another --workdir"
        ) from e
