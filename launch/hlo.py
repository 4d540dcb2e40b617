"""Read from a compiled program's HLO text what it sends between its devices."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Bits of an element; a token has no data.
_BITS = {"pred": 8, "token": 0, "bf16": 16, "c64": 64, "c128": 128}

_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_SETS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One collective operation of a program, as each device takes part in it.

    Attributes:
        kind: one of KINDS.
        shapes: shapes of its arrays, such as ("bf16[768,3072]", "f32[768]"); see `bytes`.
        bytes: bytes of the whole arrays on one device: the input of a reduce-scatter, else the output. An all-gather of
            x [n, d] over g devices has the bytes of [g·n, d].
        group: number of devices in a group; 2 for a collective-permute.
        groups: the groups as the program writes them.
        times: how often a step runs it; None inside a loop whose length the compiler did not state.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    group: int
    groups: str
    times: int | None

    @property
    def sent(self) -> float:
        """Return the bytes that each device sends per run, with the algorithms that send least (rings or tori).

        An all-reduce sends 2(g−1)/g of the bytes. An all-gather, reduce-scatter or all-to-all sends (g−1)/g. A
        collective-permute sends all (Chan et al. 2007, "Collective communication: theory, practice, and experience").
        """
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


def find_collectives(text: str, devices: int) -> list[Collective]:
    """Find the collectives of a compiled program, in the order in which it runs them.

    An asynchronous pair counts at its start. A collective in a loop appears once, with the number of rounds. All
    branches of a conditional count.

    Args:
        text: a whole module, `compiled.as_text()`.
        devices: number of devices that run it; the size of a group if the text leaves the groups empty.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _split_computations(text)
    out, begun = [], set()
    for name, line, times in _walk(computations, entry, 1):
        found = _parse_collective(line, devices, times, scattered=name.startswith("all-reduce-scatter"))
        # A TPU spreads an asynchronous collective over several fusions. All of them name it, with the same channel.
        channel = re.search(r"channel_id=\d+", line) if re.search("fus|async", name) else None
        if channel is None or channel[0] not in begun:
            out.append(found)
        begun.add(channel and channel[0])
    return out


def sum_collectives(found: list[Collective]) -> dict[tuple[str, int], dict[str, float]]:
    """Sum to (kind, group) -> {count, bytes, sent} per step. A collective in a loop of unknown length counts once."""
    out: dict[tuple[str, int], dict[str, float]] = {}
    for c in found:
        row = out.setdefault((c.kind, c.group), {"count": 0, "bytes": 0, "sent": 0})
        times = 1 if c.times is None else c.times
        for key, value in (("count", 1), ("bytes", c.bytes), ("sent", c.sent)):
            row[key] += times * value
    return out


def find_shapes(text: str) -> set[tuple[int, ...]]:
    """Find the shapes of all arrays in a program's text: everything that a device stores or sends."""
    return {_parse_dims(dims) for _, dims in _find_types(text)}


def _split_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Split a module to name -> instructions of every computation, and return the name of the entry."""
    out: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = out.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif " = " in line:
            lines.append(line)
    if not entry:
        raise ValueError("not HLO text: there is no ENTRY computation")
    return out, entry


def _walk(computations: dict[str, list[str]], name: str, times: int | None) -> Iterator[tuple[str, str, int | None]]:
    """Yield (computation, line, how often it runs) of every collective below a computation."""
    for line in computations[name]:
        _, opcode, rest = _split_instruction(line)
        if opcode.endswith(("-done", "-update")):
            continue
        if opcode.removesuffix("-start") in KINDS:
            yield name, line, times
            continue
        rounds: int | None = 1
        if opcode == "while":
            known = _TRIPS.search(rest)
            rounds = int(known[1]) if known else None
        below = None if times is None or rounds is None else times * rounds
        called = _CALLED.findall(rest)
        for names in _CALLED_SETS.findall(rest):
            called += [name.strip().removeprefix("%") for name in names.split(",")]
        for called_name in called:
            if called_name in computations:
                yield from _walk(computations, called_name, below)


def _split_instruction(line: str) -> tuple[str, str, str]:
    """Split a line to (type of the result, opcode, the rest)."""
    right = line.split(" = ", 1)[1]
    depth, end = 0, 0
    for end, character in enumerate(right):  # noqa: B007
        depth += (character in "([{") - (character in ")]}")
        if character == " " and not depth:
            break
    opcode, _, rest = right[end + 1 :].partition("(")
    return right[:end], opcode, rest


def _parse_collective(line: str, devices: int, times: int | None, *, scattered: bool) -> Collective:
    """Parse the collective of a line. `scattered`: an all-reduce of which each device keeps only its part."""
    kind, opcode, rest = _split_instruction(line)
    op = opcode.removesuffix("-start")
    if opcode != op and op != "all-reduce":  # the type of such a start is (operands, results, ...)
        kind = _split_tuple(kind)[1]
    name = "source_target_pairs" if op == "collective-permute" else "replica_groups"
    written = re.search(rf"{name}=(\{{\{{.*?\}}\}}|\[.*?\]<=\[[^ ]*\]\S*|mesh\[.*?\{{.*?\}}|\{{\}})", rest)
    groups = written[1].rstrip(",") if written else ""
    size = 2 if op == "collective-permute" else _parse_group_size(groups) or devices
    found = _find_types(kind)
    bits = sum(_count_bits(dtype) * math.prod(_parse_dims(dims)) for dtype, dims in found)
    bits *= size if op == "reduce-scatter" else 1
    shapes = tuple(f"{dtype}[{dims}]" for dtype, dims in found)
    return Collective("reduce-scatter" if scattered else op, shapes, bits // 8, size, groups, times)


def _parse_group_size(groups: str) -> int:
    """Parse the number of devices in the first group, in any of the notations. Return 0 if no groups are written."""
    if listed := re.match(r"\{\{([\d,]+)\}", groups):  # {{0,1},{2,3}}
        return listed[1].count(",") + 1
    if counted := re.match(r"\[\d+,(\d+)\]", groups):  # [groups, devices in each]<=[devices]
        return int(counted[1])
    if groups.startswith("mesh["):  # mesh['a'=4,'b'=2] {'a'}; a part of an axis is 'a':(stride)devices
        sizes = dict(re.findall(r"('\w+')=(\d+)", groups))
        along = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", groups[groups.rindex("{") :])
        return math.prod(int(part or sizes[axis]) for axis, part in along)
    return 0


def _split_tuple(kind: str) -> list[str]:
    """Split a tuple type into its types."""
    parts, depth = [""], 0
    for character in kind[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _find_types(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(pred|token|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]", text)


def _parse_dims(dims: str) -> tuple[int, ...]:
    return tuple(int(d) for d in dims.split(",") if d)


def _count_bits(dtype: str) -> int:
    return _BITS[dtype] if dtype in _BITS else 8 if dtype.startswith("f8") else int(dtype[1:])
