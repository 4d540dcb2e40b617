"""Builder: image-text pairs become a prepared TFDS/ArrayRecord dataset, without TensorFlow.

    python -m nml_jax.data.builders image_text SRC... OUT [--workers N] [--image COLUMN] [--caption COLUMN[,COLUMN]]
        [--label FIELD] [--group FIELD --parts train=0.7,new=0.3] [--beam="--runner=DirectRunner"]

A SRC is a WebDataset tar as img2dataset writes them (KEY.jpg|jpeg|png|webp, KEY.txt, KEY.json), a Parquet, CSV or TSV
file, or a folder of such files, split "train", or with a folder of such files for each split. Captions come from the
list "captions" in KEY.json, else KEY.txt, else "caption" in KEY.json; of a table from one or several columns, which may
hold lists. Images of a table are bytes, or paths below the table's folder. A table beside a tar of the same name is its
metadata, as img2dataset writes it, and no source.

Every source file, or range of rows of a table, becomes one shard, built by one process and kept in .OUT.partial: after
a kill the same command goes on with the shards that are missing. OUT holds the records in the order of the sources,
features image (bytes as they came), key and perhaps label; the supervision index (captions, keys, labels of every
split; `texts`); manifest.json with counts and a SHA-256 for every split, and refused.jsonl with every refused pair.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import shlex
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nml_jax import log
from nml_jax.data import builders, shards
from nml_jax.data.pairs import SUFFIXES, Columns, Shard, cut
from nml_jax.errors import UserError

AGAIN = "then run the same command again: the finished shards are kept"

# Calls a function with every item, in any order: over processes or over a cluster.
Spread = Callable[[str, Callable[[Any], None], Sequence[Any]], None]


def image_text(
    sources: Sequence[Path],
    out: Path,
    *,
    workers: int | None = None,
    image: str | None = None,
    captions: Sequence[str] | None = None,
    label: str = "",
    group: str = "",
    parts: Mapping[str, float] | None = None,
    beam: str | None = None,
) -> dict[str, Any]:
    """Build the dataset `out` from the pairs in `sources`; it appears under its name when it is complete.

    Pairs that cannot be used are left out and listed. The same sources give the same records and the same manifest,
    whatever the number of workers and of restarts. One build at a time may write to one `out`.

    Args:
        sources: files and folders; see the module.
        workers: processes; None: one per core.
        image, captions: columns of tables; fields of KEY.json for the captions of tars. None: the usual names.
        label: field or column with the class; the classes are the sorted values in the sources, numbers by value.
        group: field or column by whose value every split is divided into `parts`: by a hash, so records of one value
            fall into the part of one name in every split, and shares are approximate. Splits become <split>_<part>.
        parts: name -> share; the shares sum to 1.
        beam: options of an Apache Beam pipeline that builds the shards; its workers must see all files under the same
            paths.

    Returns:
        The manifest.

    Raises:
        UserError: no usable pair, a column that is not there, or `out` holds something already or cannot be written.
    """
    for source in sources:
        builders.check_out(source, out)
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers} builds nothing", "give at least one, or leave it out")
    parts = _check_parts(group, parts or {})
    columns = Columns(
        image, tuple(captions) if captions else None, tuple(dict.fromkeys(f for f in (label, group) if f))
    )
    try:
        plan = [shard for split, path, name in _files(sources) for shard in cut(split, path, name, columns)]
    except OSError as e:
        raise UserError(f"cannot read {e.filename}: {e.strerror}", "give sources that can be read") from e
    splits = _splits(plan, parts)
    spread = functools.partial(_processes, workers) if beam is None else _beam(beam)
    partial = builders.partial_folder(out)
    job = shards.Job(str(partial / "shards"), columns, label, group, tuple(parts.items()))
    try:
        _begin(partial, job, plan)
        if label:
            job = dataclasses.replace(job, classes=_classes(job, plan, spread))
        todo = [(i, shard) for i, shard in enumerate(plan) if not shards.folder_of(job, i).is_dir()]
        if len(todo) < len(plan):
            log.say(f"{len(plan) - len(todo)} of {len(plan)} shards are there already")
        spread("shards", functools.partial(shards.build, job), todo)
        manifest = shards.assemble(partial / "out", job, len(plan), splits)
        (partial / "out").rename(out.resolve())
        shutil.rmtree(partial)
    except UserError:  # the sources are of no use; nothing of them is
        shutil.rmtree(partial)
        raise
    except BrokenProcessPool as e:
        raise UserError(f"a worker was lost: {e}", f"give it memory, or use fewer --workers; {AGAIN}") from e
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", f"free or remount the disk; {AGAIN}") from e
    return manifest


# what to build


def _files(sources: Sequence[Path]) -> Iterator[tuple[str, Path, str]]:
    """(split, path, name) of every source file; names are paths below the folder that all sources share."""
    found: list[tuple[str, Path]] = []
    for source in sources:
        if source.is_file():
            if source.suffix not in SUFFIXES:
                raise UserError(f"{source} is none of {', '.join(SUFFIXES)}", "convert or decompress it first")
            found.append(("train", source))
        elif not source.is_dir():
            raise UserError(f"{source} does not exist", "give files or folders with image-text pairs")
        else:
            direct = _in_folder(source)
            folders = sorted(p for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
            splits = [(folder.name, path) for folder in folders for path in _in_folder(folder)]
            if direct and splits:
                raise UserError(
                    f"{source} holds {direct[0].name} and also {splits[0][0]}/{splits[0][1].name}",
                    "keep either files, or one folder for each split; or name the files as sources",
                )
            if not direct and not splits:
                raise UserError(f"{source} holds none of {', '.join(SUFFIXES)}", "decompress archives first")
            found += splits or [("train", path) for path in direct]
    absolute = [Path(os.path.abspath(path)) for _, path in found]
    if twice := [path for path, n in Counter(absolute).items() if n > 1]:
        raise UserError(f"{twice[0]} is given twice", "name every source once")
    roots = [Path(os.path.abspath(source)) for source in sources]
    shared = os.path.commonpath([root if root.is_dir() else root.parent for root in roots])
    for (split, _), path in zip(found, absolute, strict=True):
        name = os.fsencode(path.relative_to(shared).as_posix()).decode("utf-8", "backslashreplace")
        yield split, path, name


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file())
    tars = {p.stem for p in files if p.suffix == ".tar"}
    return [p for p in files if p.suffix == ".tar" or p.stem not in tars]


def _check_parts(group: str, parts: Mapping[str, float]) -> Mapping[str, float]:
    if bool(group) != bool(parts):
        raise UserError(
            f"--group={group} and --parts belong together", "as in --group=concept --parts=train=0.7,new=0.3"
        )
    if parts and (min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-9):
        given = ",".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(f"the shares of --parts={given} do not sum to 1", "as in --parts=train=0.7,new=0.3")
    return parts


def _splits(plan: list[Shard], parts: Mapping[str, float]) -> list[str]:
    """Names of the splits of the dataset."""
    splits = dict.fromkeys(shard.split for shard in plan)
    names = [f"{split}_{part}" for split in splits for part in parts] or list(splits)
    for name in names:
        builders.check_split(name, "rename the folder or the part")
    if len(names) > len(set(names)):
        raise UserError(f"two splits would have one name: {', '.join(sorted(names))}", "rename the folder or the part")
    return names


def _begin(partial: Path, job: shards.Job, plan: list[Shard]) -> None:
    """Keep what an interrupted build of the same sources with the same options has finished; drop that of another."""
    limits = [shards.SCHEMA, shards.MAX_CAPTION, builders.MAX_PIXELS, builders.MAX_BYTES, builders.RECORDS_PER_SHARD]
    about = {path: os.stat(path) for path in dict.fromkeys(shard.path for shard in plan)}
    sources = [[ascii(path), stat.st_size, stat.st_mtime_ns] for path, stat in about.items()]
    options = dataclasses.asdict(dataclasses.replace(job, work=""))
    said = {"limits": limits, "options": options, "shards": len(plan), "sources": sources}
    said = json.loads(json.dumps(said))  # tuples are lists there
    path = partial / "plan.json"
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        before = None
    if before != said:
        if partial.exists():
            log.say(f"{partial} holds a build of other sources or with other options: starting over")
            shutil.rmtree(partial)
        (partial / "shards").mkdir(parents=True)
        log.write_json(path, said)
    for left in (partial / "shards").glob("*.tmp"):
        shutil.rmtree(left)


def _classes(job: shards.Job, plan: list[Shard], spread: Spread) -> tuple[str, ...]:
    """Names of the classes: one pass over the labels alone, before any record is written."""
    todo = [(i, shard) for i, shard in enumerate(plan) if not shards.labels_of(job, i).exists()]
    spread("labels", functools.partial(shards.collect_labels, job), todo)
    found = {name for i in range(len(plan)) for name in json.loads(shards.labels_of(job, i).read_text("utf-8"))}
    if not found:
        raise UserError(f"no pair has a field {job.label!r}", "name a field of KEY.json, or a column, with --label")
    for name in found:
        builders.check_class(name, f"mend the field {job.label!r}, or choose another one")
    numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return tuple(sorted(found, key=(lambda name: (int(name), name)) if numbers else None))


# how the work is spread


def _processes(workers: int | None, what: str, function: Callable[[Any], None], items: Sequence[Any]) -> None:
    from tqdm import tqdm

    workers = min(workers or os.cpu_count() or 1, len(items))
    with tqdm(total=len(items), desc=what, unit=" shards", mininterval=0.5) as bar:
        if workers <= 1:
            for item in items:
                function(item)
                bar.update()
            return
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
        with ProcessPoolExecutor(workers, spawn, initializer=_die_with_parent) as pool:
            try:
                for future in as_completed([pool.submit(function, item) for item in items]):
                    future.result()
                    bar.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent() -> None:
    """Workers of a killed build would wait for it for ever, or write on beside the one that goes on."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _beam(options: str) -> Spread:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError(f"--beam needs Apache Beam: {e}", "pip install nml_jax[beam], or leave --beam out") from e

    def spread(what: str, function: Callable[[Any], None], items: Sequence[Any]) -> None:
        log.say(f"{what}: {len(items)} to do")
        with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            _ = pipeline | apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(function)

    return spread


# the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line; `main` runs it."""
    parser.add_argument(
        "src", metavar="SRC", type=Path, nargs="+", help="file, folder of files, or of a folder per split"
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--image", metavar="COLUMN", help="of a table: bytes, or paths below its folder")
    parser.add_argument("--caption", metavar="COLUMN[,COLUMN]", type=_names, help="columns, or fields of KEY.json")
    parser.add_argument("--label", metavar="FIELD", default="", help="column, or field of KEY.json, with the class")
    parser.add_argument("--group", metavar="FIELD", default="", help="pairs with one value fall into the same part")
    parser.add_argument("--parts", metavar="NAME=SHARE,...", type=_shares, help="what every split is divided into")
    parser.add_argument("--beam", metavar="OPTIONS", help='run on Apache Beam, as in --beam="--runner=DirectRunner"')


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _shares(text: str) -> dict[str, float]:
    pairs = [part.partition("=") for part in text.split(",")]
    shares = {name: float(share) for name, _, share in pairs}
    if len(shares) < len(pairs):
        raise argparse.ArgumentTypeError("two parts have one name")
    return shares


def main(args: argparse.Namespace) -> int:
    """Build what the command line asks for and print what came of it. Returns the exit code."""
    manifest = image_text(
        args.src,
        args.out,
        workers=args.workers,
        image=args.image,
        captions=args.caption,
        label=args.label,
        group=args.group,
        parts=args.parts,
        beam=args.beam,
    )
    for split, about in manifest["splits"].items():
        print(f"{split}: {about['records']} images with {about['captions']} captions")
    print(f"refused: {sum(manifest['refused'].values())}, listed in {args.out / 'refused.jsonl'}")
    for reason, n in sorted(manifest["refused"].items(), key=lambda item: -item[1]):
        print(f"  {n} x {reason}")
    print(args.out)
    return 0
