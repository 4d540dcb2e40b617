"""How far processes have come, step by step, for the line that says where they stand when none moves on."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping

TICK = 1.0  # seconds between two looks
STILL = 300.0  # seconds without a step after which it is said who stands where, and again after as many


class Progress:
    """Of one process, and in the first one of all.

    Args:
        process_names: the words for some processes of the job, such as "processes 2 and 3 of 8".
    """

    def __init__(self, process_names: Callable[[Iterable[int]], str]):
        self.process_names = process_names
        self.places: list[Callable[[], str]] = []  # of this process, from the outermost to where it is just now
        self.stood: dict[int, str] = {}  # where all were when one last moved, ...
        self.moved, self.said = time.monotonic(), 0  # when that was, and how often it was said

    def position(self) -> str:
        """How far this process has come; "" if it is nowhere."""
        return ": ".join(where() for where in tuple(self.places))  # another thread enters and leaves them

    def see(self, places: Mapping[int, str]) -> None:
        """Say where all stand if nobody moves.

        Args:
            places: of every process that is somewhere.
        """
        if places != self.stood:
            self.stood, self.moved, self.said = dict(places), time.monotonic(), 0
        elif places and (still := time.monotonic() - self.moved) >= STILL * (self.said + 1):
            self.said += 1
            print(f"no step for {still:.0f} s: {self._standing(places)}", file=sys.stderr, flush=True)

    def _standing(self, places: Mapping[int, str]) -> str:
        """Who stands where; few before many, for many that stand alike mostly wait for the few."""
        groups: dict[str, list[int]] = {}
        for process, place in sorted(places.items()):
            groups.setdefault(place, []).append(process)
        if len(groups) == 1:
            return f"{'all ' * (len(places) > 1)}in {next(iter(groups))}"
        *few, most = sorted(groups, key=lambda place: len(groups[place]))
        named = [f"{self.process_names(groups[place])} in {place}" for place in few]
        rest = self.process_names(groups[most]) if len(groups[most]) == 1 else "the others"
        return "; ".join([*named, f"{rest} in {most}"])


def watch_alone() -> Progress:
    """Of a process without others, watched until the program ends."""
    progress = Progress(lambda _: "")

    def watch() -> None:
        while True:
            time.sleep(TICK)
            place = progress.position()
            progress.see({0: place} if place else {})

    threading.Thread(target=watch, daemon=True, name="progress").start()
    return progress
