"""Numbers over seeds: how they are averaged and printed, and what a difference between two of them supports.

Two conditions, or two methods on the same features, are paired by seed and by test row. A difference is claimed where
the 95 % t-interval of the mean difference excludes 0 and at least three seeds are shared. All else is "no difference
shown".

The interval is for other seeds and other test rows alike. With d the difference that a seed makes on a test row, seeds
and rows are crossed random effects, and

    SE² = s²(means of the S seeds) / S + s²(means of the n rows) / n

is on average the variance of the mean of d or more, for it counts twice what is of a seed and a row together: the
pigeonhole model of Owen (2007, Annals of Applied Statistics 1:386). Both parts have Student's quantile of their own
degrees of freedom, S − 1 and n − 1, and the interval takes the mean of these, weighted by the parts (Cochran and Cox
1950): with three seeds Welch's degrees of freedom would claim too often. Two rows are added before s²(rows) is taken,
one in favour of each side (Bonett and Price 2012), so that few rows on which two heads differ are never taken for
certainty. A score that is not a mean over rows, such as macro-F1, is taken as one by its derivative in each row (the
infinitesimal jackknife; `evals.metrics.Shares`), with two added rows for every class. Rows of a test count as
independent draws. Where each seed holds out a share h of the rows for itself, its mean differs for that reason too:
then SE² = s²(seeds) · (1/S + h/(1 − h)), as such parts overlap (Nadeau and Bengio 2003).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import ndtri, stdtrit

from nml_jax.evals.metrics import Shares
from nml_jax.runs.finished import Seed

SEEDS = 3  # fewer shared seeds support no claim
TINY = 1e-12  # p-values are not below
ROUNDING = 1e-9  # a bound this near to 0 is float dust of averaged equal numbers
BLIND = "with one training row of each class none was left to choose settings by"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


class Stat(NamedTuple):
    """Mean and sample standard deviation (ddof 1; NaN for n < 2) of n numbers."""

    mean: float
    sd: float
    n: int


def stat(values: Iterable[float]) -> Stat:
    """Return mean, sample standard deviation and count."""
    v = np.asarray(list(values), np.float64)
    return Stat(float(v.mean()) if v.size else np.nan, float(v.std(ddof=1)) if v.size > 1 else np.nan, v.size)


class Unit(NamedTuple):
    """The format of a measure; differences get one digit more."""

    scale: float
    digits: int
    suffix: str = ""

    def number(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}".replace("-", MINUS)

    def text(self, value: float) -> str:
        return self.number(value) + self.suffix

    def signed(self, value: float) -> str:
        shown = f"{self.scale * value:+.{self.digits + 1}f}"
        return (shown if float(shown) else shown[1:]).replace("-", MINUS)


PERCENT = Unit(100, 1, " %")  # shares; the rest has no unit, and correlations are shown as 100 times their value
RATIO = Unit(1, 2)
POINTS = Unit(100, 1)  # correlations, in hundredths
UNITS = {
    "loss": Unit(1, 3), "log_loss": Unit(1, 3), "log_loss_before": Unit(1, 3),  # nats
    **dict.fromkeys(("mcc", "pearson", "spearman", "r2"), POINTS), "rmse": Unit(1, 3),
    "sve": RATIO, "lsvr": RATIO, "alpha_req": RATIO, "fisher_ratio": RATIO,
    "effective_rank": Unit(1, 1), "stable_rank": Unit(1, 1),
}  # fmt: skip


def unit(metric: str) -> Unit:
    return UNITS.get(metric.removeprefix("diagnosis/"), PERCENT)


def format_mean(s: Stat, metric: str) -> str:
    """Format mean ± sample sd in the metric's unit; the mean alone for one number, a dash for none."""
    u = unit(metric)
    if not s.n:
        return DASH
    return f"{u.number(s.mean)} ± {u.number(s.sd)}" if s.n > 1 else u.number(s.mean)


WIDEST = 0.4  # of an interval of a share that says anything
ROWS = "the test rows are too few to tell"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def say_too_few(n: int, noun: str) -> str:
    """Return that so many seeds or rows are too few to tell."""
    word = NUMBERS[n] if n < len(NUMBERS) else f"{n:,}"
    return f"{word} {noun}{' is' if n == 1 else 's are'} too few to tell"


def _says_nothing(low: float, high: float, least: float = 0) -> bool:
    """Return whether an interval of a share, or of a difference of shares, is wider than WIDEST or leaves its range."""
    return high - low > WIDEST or low < least - ROUNDING or high > 1 + ROUNDING


def format_interval(bounds: tuple[float, float], n: int, noun: str = "seed") -> str:
    """Return the interval of a share in %, or that n seeds (or rows) are too few for one; a dash if it is unknown."""
    if math.isnan(bounds[0]):
        return DASH
    return say_too_few(n, noun) if _says_nothing(*bounds) else " to ".join(map(PERCENT.number, bounds))


def format_difference(bounds: Sequence[float], n: int) -> str:
    """Do as `format_interval` for a difference of shares in points, over n folds."""
    return (
        say_too_few(n, "fold") if _says_nothing(bounds[0], bounds[1], -1) else " to ".join(map(PERCENT.signed, bounds))
    )


class Part(NamedTuple):
    """The variance that one source of chance adds to a mean difference, and its degrees of freedom."""

    variance: float
    df: float


def find_half_width(parts: Iterable[Part], p: float) -> float:
    """Return half the width of the (1 − p) confidence interval."""
    parts = tuple(parts)
    error = math.sqrt(sum(part.variance for part in parts))
    return sum(part.variance * float(stdtrit(part.df, 1 - p / 2)) for part in parts) / error if error else 0.0


def add_seeds(variance: float, n: int, redrawn: float = 0.0) -> Part:
    """Return the variance that n seeds add to that of their mean; `redrawn` as for `compare`."""
    return Part(variance * (1 / n + redrawn / (1 - redrawn)), n - 1)


def add_rows(tests: Iterable[tuple[float, Shares]]) -> list[Part]:
    """Return the variance that the choice of test rows adds to a difference, in the mean over tests.

    Tests of equal length count as the same rows in that order, as corruptions of one test set are; where they are not,
    their rows average out as independent ones do.

    Args:
        tests: the weight of each in the mean, and what every row adds to the difference, averaged over seeds.

    Returns:
        A part for every length.
    """
    together: dict[int, list[tuple[float, Shares]]] = {}
    for weight, d in tests:
        together.setdefault(len(d.values), []).append((weight, d))
    parts = []
    for n, each in together.items():
        d = sum(w * d.values for w, d in each)
        flips = np.zeros(max(len(d.flips) for _, d in each))
        counts = np.zeros_like(flips)
        for weight, own in each:
            flips[: len(own.flips)] += weight * own.flips
            counts[: len(own.counts)] = np.maximum(counts[: len(own.counts)], own.counts)
        padded = np.concatenate([d, flips, -flips])
        parts.append(Part(float(np.var(padded, ddof=1)) / len(padded), _count_df(padded, n, flips, counts)))
    return parts


def _count_df(values: NDArray[np.float64], n: int, flips: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Return the degrees of freedom of a variance of n rows.

    Where the few rows of a rare class make up most of it, it is as uncertain as one of so few. Welch's formula says how
    uncertain, with the variance that each class could have. For a loss, whose rows have no bound, a few rows with most
    of the variance count as so few: (Σ e²)² / Σ e⁴ of them.
    """
    if len(flips) == 1:
        return max(n - 1, 1)
    if len(flips):
        possible = counts * flips**2
        return max(float(possible.sum() ** 2 / (possible**2 / (counts + 1)).sum()), 1)
    squares = (values - values.mean()) ** 2
    return max(float(squares.sum() ** 2 / max((squares**2).sum(), 1e-300)) - 1, 1)


def bound_rows(tests: Iterable[tuple[float, float, float, int]]) -> list[Part]:
    """Bound `add_rows` from above if only accuracies are known, as if both sides erred independently.

    Args:
        tests: the weight of each in the mean, both shares, and the number of rows. Tests may share their rows.

    Returns:
        One part, or none of no tests.
    """
    errors, sizes = [], []
    for weight, *shares, n in tests:
        p = (n * np.asarray(shares) + 1) / (n + 2)
        errors.append(weight * math.sqrt((p * (1 - p)).sum() / n))
        sizes.append(n)
    return [Part(sum(errors) ** 2, max(min(sizes) - 1, 1))] if sizes else []


class Comparison(NamedTuple):
    """The paired difference b - a over the shared seeds, in the measure's own unit."""

    where: str
    unit: Unit
    a: float
    b: float
    difference: float
    low: float  # 95 % interval; NaN for n < 2
    high: float
    n: int  # shared seeds
    parts: tuple[Part, ...] = ()  # of the variance of the difference; none for n < 2
    bounded: bool = False  # whether what test rows add is `binomial`
    blind: bool = False  # whether either method had no rows to choose its settings by: then nothing is claimed
    redrawn: float = 0.0  # as of `compare`

    @property
    def error(self) -> float:
        """Standard error of the difference; NaN for n < 2."""
        return math.sqrt(sum(part.variance for part in self.parts)) if self.parts else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value, not corrected for other comparisons: 1 less the coverage of the interval that ends at 0.

        NaN for n < 2, and where nothing varies.
        """
        if not self.error > ROUNDING:
            return math.nan
        size = abs(self.difference)
        if find_half_width(self.parts, TINY) <= size:
            return TINY
        return root_scalar(lambda p: find_half_width(self.parts, p) - size, bracket=(TINY, 1)).root if size else 1.0

    @property
    def sign(self) -> int:
        """1 or -1 if a difference is shown, else 0. Numbers that cannot vary show nothing."""
        if self.n < SEEDS or self.blind or not self.error > ROUNDING:
            return 0
        return int(self.low > ROUNDING) - int(self.high < -ROUNDING)

    def corrected(self, comparisons: int) -> "Comparison":
        """Widen the interval so that several comparisons hold at 95 % together (Bonferroni)."""
        if not self.parts:
            return self
        half = find_half_width(self.parts, 0.05 / comparisons)
        return self._replace(low=self.difference - half, high=self.difference + half)

    def cut(self, most: float) -> "Comparison":
        """Cut the interval at the largest difference there can be."""
        return self._replace(low=max(self.low, -most), high=min(self.high, most)) if self.parts else self

    @property
    def constant(self) -> bool:
        """Return whether nothing varies: a difference then has no error, and cannot be judged."""
        return bool(self.parts) and not self.error > ROUNDING

    def verdict(self, down: str, up: str) -> str:
        if self.n < SEEDS:
            return f"no claim, n = {self.n}"
        if self.blind:
            return "no claim, no validation"
        return {-1: down, 0: "no difference shown", 1: up}[self.sign]

    @property
    def gain(self) -> str:
        """Return the difference as text."""
        return self.unit.signed(self.difference) if self.n else DASH

    def interval(self) -> str:
        """Return the interval as text; a dash for n < 2; of one that is too wide to say anything, why it is."""
        if self.n < 2:
            return DASH
        return self.too_few or f"{self.unit.signed(self.low)} to {self.unit.signed(self.high)}"

    @property
    def bounds(self) -> str:
        """Return the interval within a sentence."""
        return self.too_few or f"95 % interval {self.interval()}"

    @property
    def too_few(self) -> str:
        """Return which number, of seeds or of test rows, makes an interval of shares too wide; "" if it is not."""
        if self.unit.scale != PERCENT.scale or not self.parts or not _says_nothing(self.low, self.high, -1):
            return ""
        seeds, *rows = self.parts
        return say_too_few(self.n, "seed") if seeds.variance >= sum(part.variance for part in rows) else ROWS


def compare(
    where: str,
    unit: Unit,
    a: dict[Seed, float],
    b: dict[Seed, float],
    rows: Sequence[Part] = (),
    *,
    redrawn: float = 0.0,
) -> Comparison:
    """Compare two conditions or two heads, paired over the seeds that both have.

    Args:
        rows: what test rows add to the variance; nothing where a measure is not of test rows.
        redrawn: the share of one set of rows that each seed holds out anew to test on. Then `rows` is what they add to
            one seed's difference, which the spread of the seeds contains: it is at least that.
    """
    shared = [seed for seed in a if seed in b]
    d = stat(b[seed] - a[seed] for seed in shared)
    mean_a, mean_b = (stat(values[seed] for seed in shared).mean for values in (a, b))
    out = Comparison(where, unit, mean_a, mean_b, d.mean, math.nan, math.nan, d.n)
    if d.n < 2:
        return out
    if redrawn:
        parts = (add_seeds(max(d.sd**2, sum(part.variance for part in rows)), d.n, redrawn),)
    else:
        parts = (add_seeds(d.sd**2, d.n), *rows)
    half = find_half_width(parts, 0.05)
    return out._replace(low=d.mean - half, high=d.mean + half, parts=parts, redrawn=redrawn)


def find_seed_interval(s: Stat, *, redrawn: float = 0.0) -> tuple[float, float]:
    """Return the 95 % t-interval of a mean over seeds; `redrawn` as for `compare`. NaN for n < 2."""
    if s.n < 2:
        return math.nan, math.nan
    half = find_half_width([add_seeds(s.sd**2, s.n, redrawn)], 0.05)
    return s.mean - half, s.mean + half


def find_wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability from its share in n independent draws (Wilson 1927)."""
    z = float(ndtri(0.975))
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
