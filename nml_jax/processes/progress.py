"""Record how far each process has come, and print where they stand if none moves on."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from nml_jax.console import notice

TICK = 1.0  # seconds between two looks
STILL = 300.0  # seconds without a step before who stands where is printed, and between two such lines


class Progress:
    """The progress of this process; in process 0, of all.

    Args:
        process_names: returns words for some processes of the job, such as "processes 2 and 3 of 8".
    """

    def __init__(self, process_names: Callable[[Iterable[int]], str]):
        self.process_names = process_names
        self.places: list[Callable[[], str]] = []  # of this process, from the outermost to the innermost
        self.last: dict[int, str] = {}  # where all were when one last moved
        self.moved, self.printed = time.monotonic(), 0  # when that was, and the lines printed since

    def position(self) -> str:
        """Return how far this process has come; "" if it is nowhere."""
        return ": ".join(place() for place in tuple(self.places))  # a copy, as another thread changes the list

    def update(self, places: Mapping[int, str]) -> None:
        """Print where all stand if nobody has moved for long.

        Args:
            places: process -> position, of every process that has one.
        """
        if places != self.last:
            self.last, self.moved, self.printed = dict(places), time.monotonic(), 0
        elif places and (still := time.monotonic() - self.moved) >= STILL * (self.printed + 1):
            self.printed += 1
            notice(f"no step for {still:.0f} s: {self._describe(places)}")

    def _describe(self, places: Mapping[int, str]) -> str:
        """Return who stands where, smallest group first: the many mostly wait for the few."""
        groups: dict[str, list[int]] = {}
        for process, place in sorted(places.items()):
            groups.setdefault(place, []).append(process)
        if len(groups) == 1:
            return f"{'all ' * (len(places) > 1)}in {next(iter(groups))}"
        *few, most = sorted(groups, key=lambda place: len(groups[place]))
        parts = [f"{self.process_names(groups[place])} in {place}" for place in few]
        rest = self.process_names(groups[most]) if len(groups[most]) == 1 else "the others"
        return "; ".join([*parts, f"{rest} in {most}"])


def watch_alone() -> Progress:
    """Watch a process that has no others, until the program ends."""
    progress = Progress(lambda _: "")

    def watch() -> None:
        while True:
            time.sleep(TICK)
            place = progress.position()
            progress.update({0: place} if place else {})

    threading.Thread(target=watch, daemon=True, name="progress").start()
    return progress
