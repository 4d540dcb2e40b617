"""How far the processes of a job have come, step by step, for the line that says which of them holds the others up."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

STILL = 300.0  # seconds without a step after which it is said who stands where, and again after as many

PLACES = "nml_jax/place/"  # keys of the service


class Member(Protocol):
    """One process among the others."""

    @property
    def index(self) -> int: ...

    @property
    def client(self) -> Any: ...

    def named(self, processes: Iterable[int]) -> str: ...


class Progress:
    """Of one process, and in the first one of all."""

    def __init__(self, member: Member):
        self.member = member
        self.places: list[Callable[[], str]] = []  # of this process, from the outermost to where it is just now
        self.stood: dict[int, str] = {}  # where all were when one last moved, ...
        self.moved, self.said = time.monotonic(), 0  # when that was, and how often it was said

    def look(self) -> None:
        """Tell the others how far this process has come; the first says where all stand if nobody moves."""
        client, index = self.member.client, self.member.index
        place = ": ".join(where() for where in tuple(self.places))  # another thread enters and leaves them
        if place:
            client.key_value_set(f"{PLACES}{index}", place, allow_overwrite=True)
        if index > 0:
            return
        places = client.key_value_dir_get(PLACES) if place else ()
        stood = {int(key.rpartition("/")[2]): said for key, said in places}
        if stood != self.stood:
            self.stood, self.moved, self.said = stood, time.monotonic(), 0
        elif stood and (still := time.monotonic() - self.moved) >= STILL * (self.said + 1):
            self.said += 1
            print(f"no step for {still:.0f} s: {self._standing(stood)}", file=sys.stderr, flush=True)

    def _standing(self, places: Mapping[int, str]) -> str:
        """Who stands where; few before many, for many that stand alike mostly wait for the few."""
        groups: dict[str, list[int]] = {}
        for process, place in sorted(places.items()):
            groups.setdefault(place, []).append(process)
        if len(groups) == 1:
            return f"all in {next(iter(groups))}"
        *few, most = sorted(groups, key=lambda place: len(groups[place]))
        named = [f"{self.member.named(groups[place])} in {place}" for place in few]
        rest = self.member.named(groups[most]) if len(groups[most]) == 1 else "the others"
        return "; ".join([*named, f"{rest} in {most}"])
