"""Find the ImageNet-1k classes that are a CIFAR-100 class, or lie below one, in WordNet 3.0; write class_sets.json.

    python -m nml_jax.noise.wordnet WORDNET/dict imagenet_synsets.txt

`WORDNET/dict` is the folder of WordNet 3.0's database, which has `data.noun`: ImageNet's ids are its offsets. The text
file has the 1,000 ids, such as n01440764, one a line. The table of senses below is ours: which meaning of its name the
pictures of a CIFAR-100 class show. Its doubtful entries are in DOUBTS.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nml_jax.console import allow_any_terminal, notice, show
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.noise.class_sets import TABLE

NAME = "imagenet_cifar100"
# CIFAR-100 class -> WordNet 3.0's offsets of what its pictures show; two where two senses are the same thing.
SENSES = {
    "apple": ("07739125",), "aquarium_fish": (), "baby": ("09827683",), "bear": ("02131653",),
    "beaver": ("02363005",), "bed": ("02818832",), "bee": ("02206856",), "beetle": ("02164464",),
    "bicycle": ("02834778",), "bottle": ("02876657",), "bowl": ("02881193", "02880940"), "boy": ("10285313",),
    "bridge": ("02898711",), "bus": ("02924116",), "butterfly": ("02274259",), "camel": ("02437136",),
    "can": ("02946921",), "castle": ("02980441",), "caterpillar": ("02309337",), "cattle": ("02402425",),
    "chair": ("03001627",), "chimpanzee": ("02481823",), "clock": ("03046257",), "cloud": ("09247410",),
    "cockroach": ("02233338",), "couch": ("04256520",), "crab": ("01976957",), "crocodile": ("01697178",),
    "cup": ("03147509", "07930864"), "dinosaur": ("01699831",), "dolphin": ("02068974",), "elephant": ("02503517",),
    "flatfish": ("02657368",), "forest": ("08438533", "09284015"), "fox": ("02118333",), "girl": ("10084295",),
    "hamster": ("02342885",), "house": ("03544360",), "kangaroo": ("01877134",), "keyboard": ("03614007",),
    "lamp": ("03636649",), "lawn_mower": ("03649909",), "leopard": ("02128385",), "lion": ("02129165",),
    "lizard": ("01674464",), "lobster": ("01982650",), "man": ("10287213",), "maple_tree": ("12752205",),
    "motorcycle": ("03790512",), "mountain": ("09359803",), "mouse": ("02330245",),
    "mushroom": ("13001041", "07734744"), "oak_tree": ("12268246",), "orange": ("07747607",),
    "orchid": ("12041446",), "otter": ("02444819",), "palm_tree": ("12582231",), "pear": ("07767847",),
    "pickup_truck": ("03930630",), "pine_tree": ("11608250",), "plain": ("09393605",),
    "plate": ("03959485", "07579787"), "poppy": ("11900569",), "porcupine": ("02346627",), "possum": ("01874928",),
    "rabbit": ("02324045",), "raccoon": ("02508021",), "ray": ("01495701",), "road": ("04096066",),
    "rocket": ("04099429",), "rose": ("12620196",), "sea": ("09426788",), "seal": ("02076196",),
    "shark": ("01482330",), "shrew": ("01891633",), "skunk": ("02445715",), "skyscraper": ("04233124",),
    "snail": ("01944390",), "snake": ("01726692",), "spider": ("01772222",), "squirrel": ("02355227",),
    "streetcar": ("04335435",), "sunflower": ("11978233",), "sweet_pepper": ("07720615",),
    "table": ("04379243", "04379964"), "tank": ("04389033",), "telephone": ("04401088",),
    "television": ("04405907", "04404412"), "tiger": ("02129604",), "tractor": ("04465501",), "train": ("04468005",),
    "trout": ("02537085",), "tulip": ("12454159",), "turtle": ("01662784",), "wardrobe": ("04550184",),
    "whale": ("02062744",), "willow_tree": ("12724942",), "wolf": ("02114100",), "woman": ("10787470",),
    "worm": ("01922303",),
}  # fmt: skip
# What one could decide otherwise, in words for the documentation.
DOUBTS = {
    "aquarium_fish": "no entry in WordNet; goldfish (n01443537) is left out, though pictures show it in bowls",
    "cup": "n07930864 is a punch in WordNet, and its pictures show cups: in",
    "plate": "n07579787 is a main course in WordNet, and its pictures show plates: in",
    "television": "n04404412 is the system in WordNet, and its pictures show sets: in",
    "lamp": "the piece of furniture; candle, jack-o'-lantern and spotlight, below the source of light, are out",
    "mushroom": "the edible agaric and the fleshy body; agaric, bolete and other fungi are out",
    "possum": "the American opossum, which has no class below it; koala, an Australian possum, is out",
    "wolf": "coyote lies below it: in",
    "house": "monastery and palace lie below it: in",
    "dolphin": "killer whale lies below dolphin and whale: in, once",
    "motorcycle": "moped lies below it: in; motor scooter does not: out",
    "worm": "flatworm and nematode lie below it: in",
    "clock": "three classes lie below it: in; watches and timers do not: out",
}


def read_parents(path: Path) -> dict[str, list[str]]:
    """Read the offset of every noun's synset -> the offsets of its hypernyms, instance hypernyms included.

    Raises:
        UserError: the file is not `data.noun` of WordNet.
    """
    parents = {}
    try:
        for line in path.read_text("latin-1").splitlines():
            if not line.startswith("  "):  # not the licence
                offset, _, _, words, *fields = line.partition(" | ")[0].split()
                pointers = fields[2 * int(words, 16) :]
                pairs = zip(pointers[1::4], pointers[2::4], strict=False)
                parents[offset] = [to for symbol, to in pairs if symbol in ("@", "@i")]
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is not the nouns of WordNet: {e}", "give the folder `dict` of WordNet 3.0") from e
    return parents


def climb(offset: str, parents: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a synset and all synsets above it; some more than once."""
    yield offset
    for parent in parents[offset]:
        yield from climb(parent, parents)


def find_overlap(synsets: Sequence[str], parents: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Find the ids among `synsets` that are a CIFAR-100 class or lie below one -> the names of these classes.

    Raises:
        UserError: an id, or a sense of the table, is not in this WordNet.
    """
    names: dict[str, str] = {offset: name for name, offsets in SENSES.items() for offset in offsets}
    wrong = [o for o in (*names, *(s.removeprefix("n") for s in synsets)) if o not in parents]
    if wrong:
        raise UserError(f"{len(wrong)} synsets are not in this WordNet, the first {wrong[0]}", "give WordNet 3.0")
    found = {s: {names[o] for o in climb(s[1:], parents) if o in names} for s in synsets}
    return {synset: ", ".join(sorted(of)) for synset, of in found.items() if of}


def _read_ids(path: Path) -> list[str]:
    """Read ImageNet's 1,000 ids."""
    cure = "give a text file with the 1,000 ids in their order, one a line"
    try:
        ids = re.findall(r"^n\d{8}\b", path.read_text("utf-8"), re.MULTILINE)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}", cure) from e
    if len(ids) != 1000 or ids != sorted(ids):
        raise UserError(f"{path} has {len(ids)} ids, or they are out of order", cure)
    return ids


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser("python -m nml_jax.noise.wordnet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wordnet", type=Path, help="folder of WordNet 3.0 with data.noun")
    parser.add_argument("synsets", type=Path, help="text file of ImageNet's 1,000 ids, one a line")
    parser.add_argument("--out", type=Path, default=TABLE, help="default: the table of the package")
    allow_any_terminal()
    flags = parser.parse_args(argv)
    try:
        synsets = _read_ids(flags.synsets)
        table: dict[str, Any] = {NAME: {"classes": find_overlap(synsets, read_parents(flags.wordnet / "data.noun"))}}
        table[NAME] |= {"positions": [synsets.index(s) for s in table[NAME]["classes"]], "of": len(synsets)}
        with report_disk_errors(flags.out.parent):
            flags.out.write_text(json.dumps(table, indent=1) + "\n")
    except UserError as e:
        notice(f"error: {e}")
        return e.exit_code
    show(f"{len(table[NAME]['classes'])} classes: {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
