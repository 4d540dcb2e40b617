"""RECIPES: what each study draws and which published findings it checks.

A new study is a line here and a config in configs/studies/.
"""

from typing import NamedTuple

from nml_jax.errors import UserError
from nml_jax.reporting.statistics.choose_method import DOMAINS

SUPERVISED, BOTH = "arXiv 2309.17002", "arXiv 2309.17002 and 2403.06869"
EXTENSION = "arXiv 2403.06869"
PROBE = "probe"  # in place of a method: the study's reference, L-BFGS if it is there
LITTLE, MUCH, ANY = (0.0, 0.1), (0.1, 1.0), (0.0, 1.0)  # rates above the first number, up to the second


class View(NamedTuple):
    """A panel of a study's figure.

    title: without unit.
    y: "score", the metric that decides; a measure of a spectrum in raw mode: sve, lsvr, top_share; "validation",
        the accuracy of pre-training; "zeroshot", that of the stage zeroshot; or a metric of detectors, such as box_AP.
    domain: "id" or "ood".
    x: "condition" (such as the noise rate), "share" (of the downstream training rows), "noise" (downstream), or a
        measure of a spectrum: then a point is a test and a rate.
    by: what has a line of its own: "method", "condition" or "test".
    methods: keys of methods, PROBE among them; (): all. In spectra, () is the encoder's features, and others the
        output Z of heads.
    suspects: of heads, those that were trained on all rows ("keep"), or without the suspects ("drop").
    tasks: of scores, over which tasks: "related" to the noise, "unrelated", or "": all.
    """

    title: str
    y: str
    domain: str
    x: str = "condition"
    by: str = "method"
    methods: tuple[str, ...] = ()
    suspects: str = "keep"
    tasks: str = ""


OWN = "not asked by the papers"  # the source of a claim that checks what one would expect


class Claim(NamedTuple):
    """A published finding that the study checks.

    kind: "change": y at a condition less y at the first one. "gain": y of `method` less y of `other` at a condition;
        at rates above 0: what is published is that a head repairs damage, and clean encoders have none.
        "shrink": what `other` loses from the first to the last condition less what `method` loses. "slope": the rank
        correlation of the measure `x` with y, over tests and conditions, both less those of the first condition.
    words: what is compared; the condition is added.
    sign: as published: 1 higher, −1 lower, 0 not lower by more than a point.
    source: of the finding; with "unconfirmed" where only a figure or a summary says so. published.json has it, too,
        with the table or figure.
    band: conditions, by their position: rates above the first number, up to the second.
    pair: labels of two named conditions in place of a band: the second less the first.
    tasks: as in View.
    anywhere: of a gain, whether it is claimed at every condition, as of encoders whose noise nobody knows.
    """

    kind: str
    words: str
    y: str
    domain: str
    sign: int
    source: str
    method: str = PROBE
    other: str = ""
    x: str = ""
    band: tuple[float, float] = ANY
    pair: tuple[str, str] | None = None
    tasks: str = ""
    anywhere: bool = False


class Recipe(NamedTuple):
    """What a study asks, draws and claims."""

    question: str
    views: tuple[View, ...]
    claims: tuple[Claim, ...]


def _show_both(title: str, **how: object) -> tuple[View, View]:
    """Return the same panel in-domain and out-of-domain."""
    return tuple(View(f"{word.capitalize()} {title}", "score", domain, **how) for domain, word in DOMAINS.items())  # type: ignore[return-value, arg-type]


NOISE_HURTS = (
    Claim("change", "in-domain score of the probe", "score", "id", 0, BOTH, band=LITTLE),
    Claim("change", "in-domain score of the probe", "score", "id", -1, BOTH, band=MUCH),
    Claim("change", "out-of-domain score of the probe", "score", "ood", -1, BOTH),
)
SHRINKS = tuple(
    Claim("shrink", f"{word} loss of {less} less that of {more}", "score", domain, 1, EXTENSION, method, other)
    for domain, word in DOMAINS.items()
    for method, more, other, less in (
        ("lora", "LoRA", PROBE, "the probe"),
        ("full", "full fine-tuning", "lora", "LoRA"),
    )
)
GAINS = tuple(
    Claim("gain", f"{word} gain of NMTune over {other}", "score", domain, 1, BOTH, "nmtune", key)
    for domain, word in DOMAINS.items()
    for other, key in (("the probe", PROBE), ("the MLP", "mlp"))
)

RECIPES = {
    "noise_rates": Recipe(
        "How does transfer change with the rate of wrong supervision in pre-training?",
        (
            *_show_both("score", methods=(PROBE, "lora", "nmtune")),
            View("Pre-training, clean validation accuracy", "validation", "id"),
            View("Zero-shot accuracy, in-domain", "zeroshot", "id"),
        ),
        NOISE_HURTS,
    ),
    "data_shares": Recipe(
        "Does it matter how many downstream rows there are?",
        _show_both("score of the probe", x="share", by="condition", methods=(PROBE,)),
        NOISE_HURTS,
    ),
    "tuning_methods": Recipe(
        "Does tuning more parameters hide the noise?",
        _show_both("score", methods=(PROBE, "lora", "full")),
        (*NOISE_HURTS, *SHRINKS),
    ),
    "spectra": Recipe(
        "Do the singular values of the features explain it?",
        (
            View("In-domain score against entropy SVE", "score", "id", x="sve", by="condition", methods=(PROBE,)),
            View("Out-of-domain score against LSVR", "score", "ood", x="lsvr", by="condition", methods=(PROBE,)),
            View("Entropy SVE of in-domain features", "sve", "id"),
            View("Share of the largest singular value, in-domain", "top_share", "id"),
        ),
        (
            Claim("change", "entropy SVE of in-domain features", "sve", "id", 1, BOTH),
            Claim("change", "share of the largest singular value, in-domain features", "top_share", "id", -1, BOTH),
            Claim("slope", "rank correlation of LSVR and out-of-domain score", "score", "ood", -1,
                  f"{BOTH}, from figures: unconfirmed", x="lsvr"),
        ),
    ),
    "nmtune": Recipe(
        "Does NMTune repair what noise has done?",
        (
            *_show_both("score", methods=(PROBE, "mlp", "nmtune")),
            View("Entropy SVE of in-domain features", "sve", "id"),
            View("Entropy SVE of the heads' output Z, in-domain", "sve", "id", methods=("mlp", "nmtune")),
        ),
        (*GAINS, *NOISE_HURTS[2:]),
    ),
    "asymmetric": Recipe(
        "Does noise among related classes hurt what is related, what is not, or both?",
        (
            View("Noise-related in-domain score", "score", "id", methods=(PROBE, "nmtune"), tasks="related"),
            View("Unrelated in-domain score", "score", "id", methods=(PROBE, "nmtune"), tasks="unrelated"),
            View("Out-of-domain score", "score", "ood", methods=(PROBE, "nmtune")),
        ),
        (
            Claim("change", "noise-related in-domain score of the probe", "score", "id", -1,
                  f"{EXTENSION}: unconfirmed", tasks="related"),
            Claim("change", "unrelated in-domain score of the probe", "score", "id", 0,
                  f"{EXTENSION}, as of symmetric noise: unconfirmed", tasks="unrelated"),
            NOISE_HURTS[2]._replace(source=EXTENSION),
        ),
    ),
    "noisy_downstream": Recipe(
        "Does NMTune go together with methods against wrong downstream labels?",
        (
            *_show_both("score, all rows", x="noise", methods=(PROBE, "nmtune")),
            *_show_both("score, all rows, with GCE", x="noise", methods=("linear_gce", "nmtune_gce")),
            *_show_both("score, without the suspects", x="noise", methods=(PROBE, "nmtune"), suspects="drop"),
            *_show_both("score, encoder tuned, too", x="noise", methods=("lora", "full")),
        ),
        (
            *(claim for claim in GAINS if claim.other == PROBE),
            *(
                Claim("gain", f"{word} gain of NMTune with GCE over the probe with GCE", "score", domain, 1, EXTENSION,
                      "nmtune_gce", "linear_gce")
                for domain, word in DOMAINS.items()
            ),
        ),
    ),
    "human_noise": Recipe(
        "Is human noise worse than symmetric noise of the same size?",
        _show_both("score", methods=(PROBE, "nmtune")),
        tuple(
            Claim("change", f"{word} score of the probe", "score", domain, -1,
                  OWN, pair=("symmetric", "human"))
            for domain, word in DOMAINS.items()
        ),
    ),
    "practical_models": Recipe(
        "Does NMTune help encoders that somebody else trained?",
        _show_both("score", methods=(PROBE, "mlp", "nmtune")),
        tuple(claim._replace(anywhere=True) for claim in GAINS),
    ),
    "detection": Recipe(
        "Do detectors suffer from noise in pre-training?",
        (
            View("Box AP", "box_AP", "id", methods=("retina", "faster")),
            View("Mask AP", "mask_AP", "id", methods=("mask", "solo")),
        ),
        tuple(
            Claim("change", f"{y.replace('_', ' ')} of {name}", y, "id", sign, f"{EXTENSION}, its tables: unconfirmed",
                  system, band=band)
            for y, name, system in (
                ("box_AP", "RetinaNet", "retina"), ("box_AP", "Faster R-CNN", "faster"),
                ("mask_AP", "Mask R-CNN", "mask"), ("mask_AP", "SOLOv2", "solo"),
            )
            for band, sign in ((LITTLE, 0), (MUCH, -1))
        ),
    ),
    "regularisers": Recipe(
        "Which of NMTune's terms, and of its rivals, does what?",
        _show_both("score", methods=(PROBE, "mlp", "nmtune", "skd", "fgs", "lgm")),
        tuple(
            Claim("gain", f"{word} gain of {name} over the MLP", "score", domain, 1, source, key, "mlp")
            for domain, word in DOMAINS.items()
            for name, key, source in (
                ("NMTune", "nmtune", BOTH), ("SKD", "skd", "its abstract: unconfirmed"),
                ("FGS", "fgs", "its abstract: unconfirmed"),
                ("LGM", "lgm", "arXiv 2502.06604, its abstract: unconfirmed"),
            )
        ),
    ),
}  # fmt: skip


def check_name(name: str) -> None:
    """Raise UserError if a config's `study` is none of RECIPES."""
    if name and name not in RECIPES:
        raise UserError(f"study={name!r}", f"choose one of {', '.join(RECIPES)}")
