"""What a disk answers, in one line."""

import errno
import os

import pytest

from nml_jax import errors


def disk(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more(code: int):
    told = errors.as_disk_error(disk(code, "/a/b"))
    assert told is not None
    assert told.cause == f"cannot write /a/b: {os.strerror(code)}"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO])
def test_what_a_reader_is_told_as_well_is_not_said_to_be_a_write(code: int):
    told = errors.as_disk_error(disk(code, "/data/x.npy"))
    assert told is not None
    assert told.cause == f"cannot read or write /data/x.npy: {os.strerror(code)}"
    assert "free" not in told.cure


def test_the_storage_library_tells_a_number():
    told = errors.as_disk_error(ValueError("RESOURCE_EXHAUSTED: [os_error_code='28']"), "/run/checkpoints")
    assert told is not None
    assert told.cause == "cannot write /run/checkpoints: No space left on device"


def test_other_errors_are_of_storage_only_while_it_is_written_to():
    assert errors.as_disk_error(FileNotFoundError(2, "none", "/x")) is None
    assert errors.as_disk_error(ValueError("no number")) is None
    with pytest.raises(errors.UserError, match="cannot write /run"), errors.storing("/run"):
        raise FileExistsError(17, "File exists", "/run")
    with pytest.raises(ValueError, match="a bug"), errors.storing("/run"):
        raise ValueError("a bug")
