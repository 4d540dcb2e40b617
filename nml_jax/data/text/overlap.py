"""Count the texts of a test that training has seen."""

import re
from collections.abc import Sequence

Texts = Sequence[tuple[str, ...]]


def describe_overlap(train: Texts, test: Texts, what: str) -> str:
    """Return how many rows of a test have the texts of a training row, and of pairs how many sentences; "" for none.

    Texts are compared by their letters and digits, without case, blanks and punctuation.

    Args:
        what: the name of the test.
    """
    known, asked = [_fold(own) for own in train], [_fold(own) for own in test]
    rows, found = {*known}, []
    if whole := sum(own in rows for own in asked):
        found.append(f"{whole:,} of {len(test):,} rows are training rows, too")
    if asked and len(asked[0]) > 1:
        seen, own = ({sentence for pair in side for sentence in pair} for side in (known, asked))
        if shared := len(seen & own):
            found.append(f"{shared:,} of {len(own):,} different sentences occur in training")
    return f"{what}: {'; '.join(found)}" if found else ""


def _fold(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(re.findall(r"\w+", text.casefold())) or text for text in texts)
