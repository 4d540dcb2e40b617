"""What the words of a page mean, for readers who do not know them."""

import re

# A word as pages have it, or a word | how they have it -> its meaning. A page explains the words that it has.
WORDS = {
    "ID, in-domain": "Test rows of the same source as the training rows.",
    "OOD, out-of-domain": "Test rows of another source: other photographs, another hospital, another style.",
    "seed": "The number that random draws start from. Runs that differ in their seed alone differ by luck alone.",
    "accuracy": "Share of the test rows whose class is answered correctly.",
    "macro-F1": "Mean over the classes of F1, which is the harmonic mean of precision and recall.",
    "mean per class": "Mean over the classes of the share of their rows that are answered correctly.",
    "log loss": "Mean of \N{MINUS SIGN}log of the probability of the right class, in nats. Lower is better.",
    "calibration error": "How far the share of right answers is from the confidence. 0: probabilities are true.",
    "temperature": "A number that divides logits so that probabilities are true. It changes no answer.",
    "chance": "Accuracy of a guess that knows nothing, 1 over the classes; for F1 always the positive one.",
    "±": "Mean, and sample standard deviation over the runs.",
    "95 % interval": "Where a number would lie for other seeds and other test rows, in 95 of 100 repetitions.",
    "Wilson": "The 95 % interval of a share, from its value and the number of rows alone.",
    "widened|widened for|widened interval": "Made wider, so that all comparisons of a table hold together.",
    "linear probe": "A linear classifier on features that stay as they are.",
    "L-BFGS probe": "A logistic regression on these features, solved; its penalty is chosen by validation.",
    "MLP": "NMTune's head without its terms: a hidden layer before the classifier.",
    "NMTune": "A head that reshapes features while it learns: an MLP with three further terms in its loss.",
    "NMTune (paper)": "With the terms and weights that the papers give.",
    "NMTune (code)": "With the terms of the released code, which differs from the papers.",
    "NMTune (code/1view)": "NMTune (code) where each row has one stored view: Z is kept near to F of the same view.",
    "F": "The features as they are given.",
    "Z": "What a head makes of the features, and its classifier sees.",
    "SVE": "Entropy of the singular values' shares of their sum, in nats. Higher is flatter: more directions count.",
    "LSVR": "\N{MINUS SIGN}log of the top share, so it rises when that falls. Higher is flatter.",
    "top share": "Share of the largest singular value in the sum of all. Lower is flatter.",
    "raw mode": "Singular values of rows as they are.",
    "code mode": "Singular values after every row is normalised and its mean subtracted, as in the released code.",
    "validation part": "Training rows that are held out to choose settings by, and to stop training.",
    "halving": "All settings get a quarter of the epochs, and only the better half of them the rest.",
    "suspects": "Training rows whose labels are more likely wrong than right.",
    "WiSE-FT": "A mix of the weights before and after fine-tuning.",
    "recall@": "Share of the queries whose own partner is among so many nearest ones.",
    "noise|% noise|noise rates": "Share of wrong labels (or captions) that the pre-training data were given.",
}


def explain(page: str) -> dict[str, str]:
    """Return word -> meaning for the words that a page, as HTML, has; in the order of WORDS."""
    shown = re.sub(r"<details>\s*<summary>Config of.*?</details>|<svg.*?</svg>", " ", page, flags=re.S)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", shown).replace("\N{NO-BREAK SPACE}", " "))
    return {word.split("|")[0]: meaning for word, meaning in WORDS.items() if _has(text, word)}


def _has(text: str, word: str) -> bool:
    """Return whether a text has a word: one of those after a |, or else of those that commas separate."""
    names = word.split("|")[1:] or word.split(", ")
    ends = {name: r"(?!\w)" if name[-1].isalnum() else "" for name in names}
    return any(re.search(rf"(?<!\w){re.escape(name)}{end}", text) for name, end in ends.items())
