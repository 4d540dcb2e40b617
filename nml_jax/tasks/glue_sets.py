"""The tables of GLUE's nine tasks and of their out-of-domain partners: columns, classes, sizes, maps, sources.

GLUE is arXiv 1804.07461. The partners, and which of their classes stand for which, are those of GLUE-X (arXiv
2211.08073), except `cola_out`, which is CoLA's own. GLUE-X joins the splits of a partner. Its sizes are solved
from its published accuracies; a size of 0 is not known. Classes are in the order of their numbers in published files.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

SAME: Mapping[str, str] = MappingProxyType({})  # a map between sets that name their classes alike
PAIR = (("sentence1", "sentence2"),)
NLI = ("entailment", "neutral", "contradiction")
ENTAILS = ("entailment", "not_entailment")
GLUE = "https://gluebenchmark.com"
GLUE_X = "https://github.com/YangLinyi/GLUE-X"


class TextSet(NamedTuple):
    """A set of texts on disk.

    names: of its folder, in small letters and digits alone; the first is its own.
    columns: the alternatives for the columns of its texts, one name or two.
    labels: the alternatives for the column of its classes. scores: for that of its scores.
    classes: in the order of their numbers; () for scores alone.
    spellings: other words for a class, as they are written -> class.
    numbered_from_one: published files number the classes from 0 or from 1.
    bounds: of its scores.
    bare: names of the columns of its files without a header line.
    broken: most lines with a wrong number of cells that the published files are known for; they are left out.
    sizes: rows of train, dev and test, 0 where not known.
    joined: splits that are tested on together where the set is a partner. labelled: their rows with labels.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("label",)
    scores: tuple[str, ...] = ()
    spellings: Mapping[str, str] = SAME
    numbered_from_one: bool = False
    bounds: tuple[float, float] = (0.0, 0.0)
    bare: tuple[str, ...] = ()
    broken: int = 0
    sizes: tuple[int, int, int] = (0, 0, 0)
    joined: tuple[str, ...] = ("train", "dev", "test")
    labelled: int = 0
    url: str = GLUE


SETS: dict[str, TextSet] = {
    "cola": TextSet(
        ("cola",), (("sentence",),), ("unacceptable", "acceptable"), bare=("source", "label", "mark", "sentence"),
        sizes=(8_551, 1_043, 1_063), url="https://nyu-mll.github.io/CoLA/",
    ),
    "sst2": TextSet(("sst2",), (("sentence",),), ("negative", "positive"), sizes=(67_349, 872, 1_821)),
    "mrpc": TextSet(
        ("mrpc",), (*PAIR, ("#1 String", "#2 String")), ("not_equivalent", "equivalent"), labels=("label", "Quality"),
        sizes=(3_668, 408, 1_725), joined=("train", "dev"), labelled=4_076,
    ),
    "stsb": TextSet(
        ("stsb", "stsbenchmark"), PAIR, labels=(), scores=("score", "label"), bounds=(0.0, 5.0),
        bare=("genre", "file", "year", "id", "score", "sentence1", "sentence2"), sizes=(5_749, 1_500, 1_379),
    ),
    "qqp": TextSet(
        ("qqp",), (("question1", "question2"),), ("not_duplicate", "duplicate"), labels=("label", "is_duplicate"),
        broken=100, sizes=(363_846, 40_430, 390_965), joined=("train", "dev"), labelled=404_276,
    ),
    "mnli": TextSet(
        ("mnli", "multinli"), (("premise", "hypothesis"), *PAIR), NLI, labels=("label", "gold_label"),
        sizes=(392_702, 9_815, 9_796),
    ),
    "qnli": TextSet(("qnli",), (("question", "sentence"),), ENTAILS, sizes=(104_743, 5_463, 5_463)),
    "rte": TextSet(("rte",), PAIR, ENTAILS, sizes=(2_490, 277, 3_000), joined=("train", "dev"), labelled=2_767),
    "wnli": TextSet(("wnli",), PAIR, ENTAILS[::-1], sizes=(635, 71, 146)),  # here 1 is entailment
    "cola_ood": TextSet(
        ("colaood", "grammartest"), (("sentence",),), ("unacceptable", "acceptable"),
        bare=("source", "label", "mark", "sentence"), url=GLUE_X,
    ),
    "imdb": TextSet(
        ("imdb", "imdbreviews"), (("text",),), ("negative", "positive"),
        spellings={"neg": "negative", "pos": "positive"}, labelled=50_000,
        url="https://ai.stanford.edu/~amaas/data/sentiment/",
    ),
    "yelp": TextSet(
        ("yelp", "yelppolarity", "yelppolarityreviews"), (("text",),), ("negative", "positive"),
        numbered_from_one=True, bare=("label", "text"), labelled=598_000, url="https://arxiv.org/abs/1509.01626",
    ),
    "amazon": TextSet(
        ("amazon", "amazonpolarity"), (("content",), ("text",)), ("negative", "positive"), numbered_from_one=True,
        bare=("label", "title", "content"), labelled=4_000_000, url="https://arxiv.org/abs/1509.01626",
    ),
    "flipkart": TextSet(
        ("flipkart",), (("Summary",), ("text",)), ("negative", "neutral", "positive"), labels=("Sentiment", "label"),
        labelled=205_041, url=GLUE_X,
    ),
    "twitter": TextSet(
        ("twitter", "pit2015", "semevalpit2015"), PAIR, ("not_equivalent", "equivalent"), labelled=16_777,
        url="https://github.com/cocoxu/SemEval-PIT2015",
    ),
    "hans": TextSet(
        ("hans",), (("premise", "hypothesis"), *PAIR), ENTAILS, labels=("label", "gold_label"),
        spellings={"non-entailment": "not_entailment"}, labelled=60_000, url="https://github.com/tommccoy1/hans",
    ),
    "scitail": TextSet(
        ("scitail",), (("premise", "hypothesis"), *PAIR), ("entailment", "neutral"), labels=("label", "gold_label"),
        spellings={"entails": "entailment"}, bare=("premise", "hypothesis", "label"), labelled=26_527,
        url="https://allenai.org/data/scitail",
    ),
    "snli": TextSet(
        ("snli",), (("premise", "hypothesis"), *PAIR), NLI, labels=("label", "gold_label"), labelled=569_033,
        url="https://nlp.stanford.edu/projects/snli/",
    ),
    "sick": TextSet(
        ("sick",), (("sentence_A", "sentence_B"),), NLI, labels=("entailment_judgment", "entailment_label", "label"),
        scores=("relatedness_score",), bounds=(1.0, 5.0), labelled=9_840, url="https://zenodo.org/records/2787612",
    ),
    "qnli_ood": TextSet(
        ("qnliood", "newsqa"), (("question", "sentence"),), ENTAILS, labelled=119_525, url=GLUE_X,
    ),
}  # fmt: skip


class Partner(NamedTuple):
    """An out-of-domain test of a task.

    of: its key in SETS. part: "": all labelled splits; else the words of its one file's name.
    classes: its class -> the task's, where they have other names; () for scores.
    """

    of: str
    part: str = ""
    classes: Mapping[str, str] = SAME


class GlueTask(NamedTuple):
    """A task of GLUE.

    metric: its primary metric. partners: name of the test -> what it is.
    dev: words of the name of its dev file.
    """

    metric: str
    partners: Mapping[str, Partner] = MappingProxyType({})
    dev: str = "dev"


TO_ENTAILMENT = {"equivalent": "entailment", "duplicate": "entailment",
                 "not_equivalent": "not_entailment", "not_duplicate": "not_entailment"}  # fmt: skip
TO_EQUIVALENT = {"entailment": "equivalent", "not_entailment": "not_equivalent",
                 "duplicate": "equivalent", "not_duplicate": "not_equivalent"}  # fmt: skip
TO_DUPLICATE = {"entailment": "duplicate", "not_entailment": "not_duplicate",
                "equivalent": "duplicate", "not_equivalent": "not_duplicate"}  # fmt: skip
LESS = {"neutral": "negative"}  # flipkart's

GLUE_TASKS: dict[str, GlueTask] = {
    "cola": GlueTask("mcc", {"cola_out": Partner("cola", "dev out"), "cola_ood": Partner("cola_ood")}),
    "sst2": GlueTask("accuracy", {
        "imdb": Partner("imdb"), "yelp": Partner("yelp"), "amazon": Partner("amazon"),
        "flipkart": Partner("flipkart", classes=LESS),
    }),
    "mrpc": GlueTask("f1", {
        "qqp": Partner("qqp", classes=TO_EQUIVALENT), "rte": Partner("rte", classes=TO_EQUIVALENT),
        "hans": Partner("hans", classes=TO_EQUIVALENT), "twitter": Partner("twitter"),
    }),
    "stsb": GlueTask("pearson", {"sick": Partner("sick")}),
    "qqp": GlueTask("f1", {
        "mrpc": Partner("mrpc", classes=TO_DUPLICATE), "rte": Partner("rte", classes=TO_DUPLICATE),
        "hans": Partner("hans", classes=TO_DUPLICATE), "twitter": Partner("twitter", classes=TO_DUPLICATE),
    }),
    "mnli": GlueTask("accuracy", {
        "mnli_mismatched": Partner("mnli", "dev mismatched"), "snli": Partner("snli"), "sick": Partner("sick"),
    }, dev="dev matched"),
    "qnli": GlueTask("accuracy", {"qnli_ood": Partner("qnli_ood")}),
    "rte": GlueTask("accuracy", {
        "mrpc": Partner("mrpc", classes=TO_ENTAILMENT), "qqp": Partner("qqp", classes=TO_ENTAILMENT),
        "hans": Partner("hans"), "scitail": Partner("scitail", classes={"neutral": "not_entailment"}),
    }),
    "wnli": GlueTask("accuracy"),
}  # fmt: skip
