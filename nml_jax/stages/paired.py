"""Numbers over seeds: how they are averaged and printed, and what a difference between two of them supports.

Two conditions, or two methods on the same features, are paired by seed. A difference is claimed where the 95 %
t-interval of the mean difference excludes 0 and at least three seeds are shared. All else is "no difference shown".
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from nml_jax.stages.cells import Seed

SEEDS = 3  # fewer shared seeds support no claim
ROUNDING = 1e-9  # a bound this near to 0 is float dust of averaged equal numbers
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


class Stat(NamedTuple):
    """Mean and sample standard deviation (ddof 1; NaN for n < 2) of n numbers."""

    mean: float
    sd: float
    n: int


def stat(values: Iterable[float]) -> Stat:
    """Mean, sample standard deviation and count."""
    v = np.asarray(list(values), np.float64)
    return Stat(float(v.mean()) if v.size else np.nan, float(v.std(ddof=1)) if v.size > 1 else np.nan, v.size)


class Unit(NamedTuple):
    """How a measure is printed; differences get a digit more."""

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


PERCENT = Unit(100, 1, " %")  # shares; the rest has no unit
UNITS = {"sve": Unit(1, 2), "lsvr": Unit(1, 2), "effective_rank": Unit(1, 1)}


def unit(metric: str) -> Unit:
    return UNITS.get(metric, PERCENT)


class Comparison(NamedTuple):
    """The paired difference b - a over the shared seeds, in the measure's own unit."""

    where: str
    unit: Unit
    a: float
    b: float
    difference: float
    low: float  # 95 % t-interval; NaN for n < 2
    high: float
    n: int  # shared seeds
    error: float = math.nan  # standard error of the difference

    @property
    def p(self) -> float:
        """Two-sided p-value of the paired t-test, not corrected for other comparisons; NaN for n < 2."""
        if self.n < 2:
            return math.nan
        if self.error < ROUNDING:
            return float(abs(self.difference) < ROUNDING)
        return float(2 * stdtr(self.n - 1, -abs(self.difference) / self.error))

    @property
    def sign(self) -> int:
        """1 or -1 where a difference is shown, else 0."""
        return int(self.low > ROUNDING) - int(self.high < -ROUNDING) if self.n >= SEEDS else 0

    def corrected(self, comparisons: int) -> "Comparison":
        """With the interval that one of several comparisons needs, so that all hold at 95 % together (Bonferroni)."""
        if self.n < SEEDS:
            return self
        half = self.error * float(stdtrit(self.n - 1, 1 - 0.025 / comparisons))
        return self._replace(low=self.difference - half, high=self.difference + half)

    def verdict(self, down: str, up: str) -> str:
        if self.n < SEEDS:
            return f"no claim, n = {self.n}"
        return {-1: down, 0: "no difference shown", 1: up}[self.sign]

    def interval(self) -> str:
        return f"{self.unit.signed(self.low)} to {self.unit.signed(self.high)}" if self.n > 1 else DASH


def compare(where: str, unit: Unit, a: dict[Seed, float], b: dict[Seed, float], redrawn: float = 0.0) -> Comparison:
    """Compare two conditions or two heads, paired over the seeds that both have.

    Args:
        redrawn: the share of one set of rows that each seed holds out anew to test on. Such tests and their training
            rows overlap, and the standard error is sd·√(1/n + h/(1 − h)) (Nadeau and Bengio 2003).
    """
    shared = [seed for seed in a if seed in b]
    d = stat(b[seed] - a[seed] for seed in shared)
    error = d.sd * math.sqrt(1 / d.n + redrawn / (1 - redrawn)) if d.n > 1 else math.nan
    half = float(stdtrit(d.n - 1, 0.975)) * error if d.n > 1 else math.nan
    mean_a, mean_b = (stat(values[seed] for seed in shared).mean for values in (a, b))
    return Comparison(where, unit, mean_a, mean_b, d.mean, d.mean - half, d.mean + half, d.n, error)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a probability, of which a share was seen in n independent draws (Wilson 1927)."""
    z = float(ndtri(0.975))
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
