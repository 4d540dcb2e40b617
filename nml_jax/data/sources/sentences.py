"""A source of texts, or of pairs of texts, with labels."""

from collections.abc import Sequence

import numpy as np

from nml_jax.data.sources.source import Source, digest


class Sentences(Source):
    """Texts in memory, each a tuple of one or two, with labels."""

    def __init__(self, texts: Sequence[tuple[str, ...]], labels: np.ndarray, class_names: Sequence[str]):
        super().__init__(
            labels,
            num_classes=len(class_names),
            class_names=class_names,
            fingerprint=digest("texts", [list(text) for text in texts], list(class_names), np.asarray(labels)),
        )
        self.texts = texts


class ScoredSentences(Sentences):
    """Texts in memory with a score each, to be predicted by regression.

    `labels` are the scores, float32 [N]. There is one class, whose name is what they measure.
    """

    def __init__(self, texts: Sequence[tuple[str, ...]], scores: np.ndarray, name: str):
        super().__init__(texts, np.zeros(len(scores), np.int32), (name,))
        self.labels = self.labels_clean = np.asarray(scores, np.float32)
        self.fingerprint = digest("scored", self.fingerprint, self.labels)
