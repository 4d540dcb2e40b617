import io
import warnings

import numpy as np
import pytest

from nml_jax.data import npy


def pack(array) -> bytes:
    np.save(out := io.BytesIO(), array)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)), np.array(["é", "b"]),
     np.zeros((0, 4)), np.array(3)],
)  # fmt: skip
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array):
    (tmp_path / "x.npy").write_bytes(pack(array))
    for got in (npy.load(tmp_path / "x.npy"), npy.load(pack(array)), npy.load_mapped(tmp_path / "x.npy")):
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
    npy.load(tmp_path / "x.npy")[...] = array  # it is writable


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [(b"}", b"{", "header is damaged"), (b"(2, 3)", b"(2, -3", "header"), (b"'<f8'", b"'|O' ", "need pickle"),
     (b"(2, 3)", b"(9**9)", "malformed"), (b"(2, 3)", b"(9, 9)", "cut short by 600 bytes"),
     (b"NUMPY", b"NUMPX", "magic")],
)  # fmt: skip
def test_a_damaged_array_is_a_value_error(tmp_path, old, new, why):
    data = pack(np.arange(6.0).reshape(2, 3)).replace(old, new)
    (tmp_path / "x.npy").write_bytes(data)
    for read, source in ((npy.load, data), (npy.load, tmp_path / "x.npy"), (npy.load_mapped, tmp_path / "x.npy")):
        with pytest.raises(ValueError, match=why):
            read(source)


def test_an_array_of_python_2_is_read_without_a_warning():
    data = pack(np.arange(6.0).reshape(2, 3)).replace(b"(2, 3), }", b"(2L, 3L)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(npy.load(data), np.arange(6.0).reshape(2, 3))
