import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from nml_jax.data.class_weights import find_class_weights
from nml_jax.errors import UserError

LABELS = np.array([0, 0, 0, 0, 2, 2, 1])
NAMES = ("ant", "bee", "cat")


@pytest.mark.parametrize("wanted", ["balanced", {0: 2.0, 2: 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_are_those_of_scikit_learn(wanted, weighted):
    weights = np.random.default_rng(0).random(7) if weighted else None
    own = compute_class_weight(wanted, classes=np.arange(3), y=LABELS, sample_weight=weights)
    np.testing.assert_allclose(find_class_weights(wanted, LABELS, range(3), weights=weights), own, rtol=1e-15)


def test_all_ways_to_write_them():
    assert find_class_weights((), LABELS, NAMES) is None
    assert find_class_weights(None, LABELS, NAMES) is None
    balanced = find_class_weights(("balanced",), LABELS, NAMES)
    assert balanced is not None
    np.testing.assert_allclose(balanced, [7 / 12, 7 / 3, 7 / 6])
    for wanted in ({"cat": 3}, (("cat", 3.0),), ("cat", 3.0), (1, 1, 3)):
        np.testing.assert_array_equal(find_class_weights(wanted, LABELS, NAMES), [1, 1, 3])
    with_gap = find_class_weights("balanced", np.array([0, 0, 2]), NAMES)  # a class without rows does not count
    np.testing.assert_allclose(with_gap, [3 / 4, 1, 3 / 2])


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        ({"dog": 2}, "no class 'dog'"),
        ((1.0, 2.0), "2 weights for 3 classes"),
        ("even", "tune.class_weight='even'"),
        ({"cat": 0}, "0 is not a weight"),
        ({"cat": "2"}, "'2' is not a weight"),
        ((1, 2, float("nan")), "nan is not a weight"),
    ],
)
def test_what_is_wrong_is_named(wanted, cause):
    with pytest.raises(UserError, match=cause) as error:
        find_class_weights(wanted, LABELS, NAMES, what="tune.class_weight")
    assert error.value.cure
