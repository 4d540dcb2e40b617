"""How far the processes of a job have come, step by step, for the line that says which of them holds the others up."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

STILL = 300.0  # seconds without a step after which it is said who stands where, and again after as many

PLACES = "nml_jax/place/"  # keys of the service

Place = tuple[int, str]  # step (or batch, or head), and what is being done there


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
        self.places: list[Callable[[], Place]] = []  # of this process, from the outermost to where it is just now
        self.stood: dict[int, Place] = {}  # where all were when one last moved, ...
        self.moved, self.said = time.monotonic(), 0  # when that was, and how often it was said

    def look(self) -> None:
        """Tell the others how far this process has come; the first says where all stand if nobody moves."""
        client, index, place = self.member.client, self.member.index, self._place()
        if place is not None:
            client.key_value_set(f"{PLACES}{index}", json.dumps(place), allow_overwrite=True)
        if index > 0:
            return
        places = client.key_value_dir_get(PLACES) if place is not None else ()
        stood = {int(key.rpartition("/")[2]): tuple(json.loads(said)) for key, said in places}
        if stood != self.stood:
            self.stood, self.moved, self.said = stood, time.monotonic(), 0
        elif stood and (still := time.monotonic() - self.moved) >= STILL * (self.said + 1):
            self.said += 1
            print(f"no step for {still:.0f} s: {self._standing(stood)}", file=sys.stderr, flush=True)

    def _place(self) -> Place | None:
        """The innermost step, and what is being done there, in words from the outermost to the innermost."""
        if not (places := [place() for place in tuple(self.places)]):  # another thread enters and leaves them
            return None
        return places[-1][0], ", ".join(what for _, what in places)

    def _standing(self, places: Mapping[int, Place]) -> str:
        """ "process 1 (its host) of 8 at step 7 (step), the others at step 9 (step)": first who holds them up."""
        groups: dict[Place, list[int]] = {}
        for process, place in places.items():
            groups.setdefault(place, []).append(process)
        *few, (step, part) = sorted(groups, key=lambda place: (len(groups[place]), place))
        named = [f"{self.member.named(groups[place])} at step {place[0]} ({place[1]})" for place in few]
        return ", ".join([*named, f"{'the others' if few else 'all'} at step {step} ({part})"])
