"""What a compiled program sends between its devices, read from its HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Bits of an element; a token has none.
_BITS = {"pred": 8, "token": 0, "bf16": 16, "c64": 64, "c128": 128}

_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_SETS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One collective operation of a program, as each device takes part in it.

    kind: one of KINDS.
    shapes: of what it works on, as in ("bf16[768,3072]", "f32[768]"); see `bytes`.
    bytes: of the arrays before they are split or after they are put together, on one device: of a reduce-scatter the
        input, of everything else the output. In an all-gather of x [n, d] over g devices that is [g·n, d].
    group: devices that take part together; 2 for a collective-permute.
    groups: the groups as the program writes them.
    times: how often a step runs it; None inside a loop whose number of rounds the compiler did not state.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    group: int
    groups: str
    times: int | None

    @property
    def sent(self) -> float:
        """Bytes that each device sends, once, in the algorithms that send least: rings, or their like on a torus.

        2(g−1)/g of the bytes in an all-reduce, (g−1)/g in an all-gather, reduce-scatter or all-to-all, and all of them
        in a collective-permute (Chan et al. 2007, "Collective communication: theory, practice, and experience").
        """
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program, `compiled.as_text()`, in the order in which it runs them.

    Of an asynchronous pair the start is counted, the update and the end are not. A collective in a loop stands once,
    with the number of rounds; all branches of a conditional are counted.

    Args:
        text: of a whole module.
        devices: that run it: the size of a group where the text leaves the groups empty.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _computations(text)
    out, begun = [], set()
    for name, line, times in _walk(computations, entry, 1):
        found = _collective(line, devices, times, scattered=name.startswith("all-reduce-scatter"))
        # A TPU spreads an asynchronous collective over several fusions, each of which names it, by one channel.
        channel = re.search(r"channel_id=\d+", line) if re.search("fus|async", name) else None
        if channel is None or channel[0] not in begun:
            out.append(found)
        begun.add(channel and channel[0])
    return out


def total(found: list[Collective]) -> dict[tuple[str, int], dict[str, float]]:
    """(kind, group) -> {count, bytes, sent} per step, over all collectives; one in an unbounded loop counts once."""
    out: dict[tuple[str, int], dict[str, float]] = {}
    for c in found:
        row = out.setdefault((c.kind, c.group), {"count": 0, "bytes": 0, "sent": 0})
        times = 1 if c.times is None else c.times
        for key, value in (("count", 1), ("bytes", c.bytes), ("sent", c.sent)):
            row[key] += times * value
    return out


def arrays(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays that a program's text names: everything a device holds, sends or passes through."""
    return {_dims(dims) for _, dims in _shapes(text)}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> instructions of every computation, and the name of the entry."""
    out: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = out.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif " = " in line:
            lines.append(line)
    if not entry:
        raise ValueError("this is no HLO text: it has no ENTRY computation")
    return out, entry


def _walk(computations: dict[str, list[str]], name: str, times: int | None) -> Iterator[tuple[str, str, int | None]]:
    """(computation, line, how often it runs) of every collective that is run below a computation."""
    for line in computations[name]:
        _, opcode, rest = _instruction(line)
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


def _instruction(line: str) -> tuple[str, str, str]:
    """(type of the result, opcode, the rest) of one line."""
    right = line.split(" = ", 1)[1]
    depth, end = 0, 0
    for end, character in enumerate(right):  # noqa: B007
        depth += (character in "([{") - (character in ")]}")
        if character == " " and not depth:
            break
    opcode, _, rest = right[end + 1 :].partition("(")
    return right[:end], opcode, rest


def _collective(line: str, devices: int, times: int | None, *, scattered: bool) -> Collective:
    """The collective of a line; `scattered`: an all-reduce of which each device keeps its part alone."""
    kind, opcode, rest = _instruction(line)
    op = opcode.removesuffix("-start")
    if opcode != op and op != "all-reduce":  # the type of such a start is (operands, results, ...)
        kind = _parts(kind)[1]
    name = "source_target_pairs" if op == "collective-permute" else "replica_groups"
    written = re.search(rf"{name}=(\{{\{{.*?\}}\}}|\[.*?\]<=\[[^ ]*\]\S*|mesh\[.*?\{{.*?\}}|\{{\}})", rest)
    groups = written[1].rstrip(",") if written else ""
    size = 2 if op == "collective-permute" else _group(groups) or devices
    found = _shapes(kind)
    bits = sum(_bits(dtype) * math.prod(_dims(dims)) for dtype, dims in found)
    bits *= size if op == "reduce-scatter" else 1
    shapes = tuple(f"{dtype}[{dims}]" for dtype, dims in found)
    return Collective("reduce-scatter" if scattered else op, shapes, bits // 8, size, groups, times)


def _group(groups: str) -> int:
    """Devices in the first of the groups, in any of the notations; 0 where none are written."""
    if listed := re.match(r"\{\{([\d,]+)\}", groups):  # {{0,1},{2,3}}
        return listed[1].count(",") + 1
    if counted := re.match(r"\[\d+,(\d+)\]", groups):  # [groups, devices in each]<=[devices]
        return int(counted[1])
    if groups.startswith("mesh["):  # mesh['a'=4,'b'=2] {'a'}; a part of an axis is 'a':(stride)devices
        sizes = dict(re.findall(r"('\w+')=(\d+)", groups))
        along = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", groups[groups.rindex("{") :])
        return math.prod(int(part or sizes[axis]) for axis, part in along)
    return 0


def _parts(kind: str) -> list[str]:
    """The types inside a tuple type."""
    parts, depth = [""], 0
    for character in kind[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _shapes(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(pred|token|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]", text)


def _dims(dims: str) -> tuple[int, ...]:
    return tuple(int(d) for d in dims.split(",") if d)


def _bits(dtype: str) -> int:
    return _BITS[dtype] if dtype in _BITS else 8 if dtype.startswith("f8") else int(dtype[1:])
