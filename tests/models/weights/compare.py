"""Compare the weights that both layouts bring back."""


def assert_equal(got, want):
    """Compare bit by bit, with dtypes and memory order."""
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert (value.dtype, value.shape, value.flags.c_contiguous) == (want[name].dtype, want[name].shape, True), name
        assert value.tobytes() == want[name].tobytes(), name
