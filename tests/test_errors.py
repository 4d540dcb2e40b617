"""Errors of a disk become one line."""

import errno
import os

import pytest

from nml_jax import errors


def make_error(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more(code: int):
    error = errors.as_disk_error(make_error(code, "/a/b"))
    assert error is not None
    assert error.cause == f"cannot write /a/b: {os.strerror(code)}"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO])
def test_an_error_that_reading_may_raise_too_is_not_called_a_write(code: int):
    error = errors.as_disk_error(make_error(code, "/data/x.npy"))
    assert error is not None
    assert error.cause == f"cannot read or write /data/x.npy: {os.strerror(code)}"
    assert "free" not in error.cure


def test_the_storage_library_tells_a_number():
    error = errors.as_disk_error(ValueError("RESOURCE_EXHAUSTED: [os_error_code='28']"), "/run/checkpoints")
    assert error is not None
    assert error.cause == "cannot write /run/checkpoints: No space left on device"


def test_other_errors_are_the_disks_only_while_a_path_is_written():
    assert errors.as_disk_error(FileNotFoundError(2, "none", "/x")) is None
    assert errors.as_disk_error(ValueError("no number")) is None
    with pytest.raises(errors.UserError, match="cannot write /run"), errors.report_disk_errors("/run"):
        raise FileExistsError(17, "File exists", "/run")
    with pytest.raises(ValueError, match="a bug"), errors.report_disk_errors("/run"):
        raise ValueError("a bug")


def test_a_name_with_line_ends_keeps_an_error_on_two_lines():
    error = errors.UserError("a\nb\x85c\u2028.npz is damaged", "delete a\r\nb")
    assert str(error).splitlines() == ["a\\nb\\x85c\\u2028.npz is damaged", "  cure: delete a\\r\\nb"]
