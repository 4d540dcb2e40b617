"""Builder: image-text pairs become a prepared TFDS/ArrayRecord dataset, without TensorFlow.

    python -m nml_jax.prepare image_text SRC... OUT [--workers N] [--image COLUMN] [--caption COLUMN[,COLUMN]]
        [--label FIELD] [--group FIELD --parts train=0.7,new=0.3] [--resize SIDE] [--beam="--runner=DirectRunner"]

A SRC is a WebDataset tar as img2dataset writes them (KEY.jpg|jpeg|png|webp, KEY.txt, KEY.json), a Parquet, CSV or TSV
file, or a folder of such files, split "train", or with a folder of such files for each split. Where several folders
of files are given, and their names differ, each is a split of its name. Captions come from the
list "captions" in KEY.json, else KEY.txt, else "caption" in KEY.json; of a table from one or several columns, which may
hold lists. Images of a table are bytes, or paths below the table's folder. In CSV and TSV, rows one behind the other
with the same path are one image with several captions; if it comes back later it is refused: sort the table by image.
A table beside a tar of the same name is its metadata, as img2dataset writes it, and no source.

Every source file, or range of rows of a table, becomes one shard, built by one process and kept in .OUT.partial: after
a kill the same command goes on with the shards that are missing. So a tar is one unit of parallel work and of what is
done again, however large it is, and the progress bar counts shards. OUT holds the records in the order of the sources,
features image (bytes as they came, or shrunk by --resize), key and perhaps label; the supervision index (captions,
keys, labels of every split; `texts`); manifest.json with counts and a SHA-256 for every split; and refused.jsonl with
everything refused: pairs, captions of pairs that were kept, and files that could not be read or were not understood.
The manifest counts these three by reason, so records and refused pairs sum to the pairs of the sources.

Apache Beam maps the same function over the same shards. TFDS's own Beam writer is not used: it orders records by a hash
of their keys, and cannot go on where it was killed; here every runner gives the same bytes in the order of the sources.
Beam's pins cannot be met together with constraints.txt: install it beside nml_jax in an environment of its own, without
the constraints.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.prepare import records
from nml_jax.prepare.pairs import shards
from nml_jax.prepare.pairs.find import find
from nml_jax.prepare.pairs.read import cut
from nml_jax.prepare.pairs.types import Columns, Shard
from nml_jax.runs.files import write_json

AGAIN = "then run the same command again: the finished shards are kept"

# Calls a function with every item, in any order: over processes or over a cluster.
Spread = Callable[[str, Callable[[Any], None], Sequence[Any]], None]


class PipelineFailed(Exception):
    """Apache Beam gave up; the message says why in one line."""


def build_image_text(
    sources: Sequence[Path],
    out: Path,
    *,
    workers: int | None = None,
    image: str | None = None,
    captions: Sequence[str] | None = None,
    label: str = "",
    group: str = "",
    parts: Mapping[str, float] | None = None,
    resize: int | None = None,
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
        resize: shorter side in pixels to which larger images are shrunk; None: they stay as they are.
        beam: options of an Apache Beam pipeline that builds the shards; its workers must see all files under the same
            paths.

    Returns:
        The manifest.

    Raises:
        UserError: no usable pair, a column that is not there, `resize` is no size, or `out` holds something already or
            cannot be written.
    """
    records.check_resize(resize)
    for source in sources:
        records.check_out(source, out)
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers} builds nothing", "give at least one, or leave it out")
    parts = _check_parts(group, parts or {})
    columns = Columns(
        image, tuple(captions) if captions else None, tuple(dict.fromkeys(f for f in (label, group) if f))
    )
    try:
        files, strays = find(sources)
        plan = [shard for split, path, name in files for shard in cut(split, path, name, columns)]
    except OSError as e:
        raise UserError(f"cannot read {e.filename}: {e.strerror}", "give sources that can be read") from e
    splits = _splits(plan, parts)
    spread = functools.partial(_processes, workers) if beam is None else _beam(beam)
    partial = records.partial_folder(out)
    job = shards.BuildJob(str(partial / "shards"), columns, label, group, tuple(parts.items()), resize=resize)
    try:
        _begin(partial, job, plan)
        if label:
            job = dataclasses.replace(job, classes=_classes(job, plan, spread))
        todo = [(i, shard) for i, shard in enumerate(plan) if not shards.shard_folder(job, i).is_dir()]
        if len(todo) < len(plan):
            console.notice(f"{len(plan) - len(todo)} of {len(plan)} shards are there already")
        spread("shards", functools.partial(shards.build, job), todo)
        manifest = shards.assemble(partial / "out", job, len(plan), splits, strays)
        (partial / "out").rename(out.resolve())
        shutil.rmtree(partial)
    except UserError:  # the sources are of no use; nothing of them is
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except PipelineFailed as e:
        raise UserError(f"the pipeline failed: {e}", f"mend what its log tells; {AGAIN}") from e
    except BrokenProcessPool as e:
        raise UserError(f"a worker was lost: {e}", f"give it memory, or use fewer --workers; {AGAIN}") from e
    except (NotADirectoryError, PermissionError) as e:
        raise UserError(f"cannot write {out}: {e}", "choose an OUT in a folder that can be written") from e
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", f"free or remount the disk; {AGAIN}") from e
    return manifest


# what to build


def _check_parts(group: str, parts: Mapping[str, float]) -> Mapping[str, float]:
    if bool(group) != bool(parts):
        raise UserError(
            f"--group={group} and --parts belong together", "as in --group=concept --parts=train=0.7,new=0.3"
        )
    if parts and not (all(share > 0 for share in parts.values()) and abs(sum(parts.values()) - 1) <= 1e-9):
        given = ",".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(
            f"the shares of --parts={given} do not sum to 1, each above 0", "as in --parts=train=0.7,new=0.3"
        )
    return parts


def _splits(plan: list[Shard], parts: Mapping[str, float]) -> list[str]:
    """Names of the splits of the dataset."""
    splits = dict.fromkeys(shard.split for shard in plan)
    names = [f"{split}_{part}" for split in splits for part in parts] or list(splits)
    for name in names:
        records.check_split(name, "rename the folder or the part")
    if len(names) > len(set(names)):
        raise UserError(f"two splits would have one name: {', '.join(sorted(names))}", "rename the folder or the part")
    return names


def _begin(partial: Path, job: shards.BuildJob, plan: list[Shard]) -> None:
    """Keep what an interrupted build of the same sources with the same options has finished; drop that of another."""
    limits = [shards.SCHEMA, shards.MAX_CAPTION, records.MAX_PIXELS, records.MAX_BYTES, records.RECORDS_PER_SHARD]
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
            console.notice(f"{partial} holds a build of other sources or with other options: starting over")
            shutil.rmtree(partial)
        (partial / "shards").mkdir(parents=True)
        write_json(path, said)
    for left in (partial / "shards").glob("*.tmp"):
        shutil.rmtree(left)


def _classes(job: shards.BuildJob, plan: list[Shard], spread: Spread) -> tuple[str, ...]:
    """Names of the classes: one pass over the labels alone, before any record is written."""
    todo = [(i, shard) for i, shard in enumerate(plan) if not shards.shard_labels(job, i).exists()]
    spread("labels", functools.partial(shards.collect_labels, job), todo)
    found = {name for i in range(len(plan)) for name in json.loads(shards.shard_labels(job, i).read_text("utf-8"))}
    if not found:
        raise UserError(f"no pair has a field {job.label!r}", "name a field of KEY.json, or a column, with --label")
    for name in found:
        records.check_class(name, f"mend the field {job.label!r}, or choose another one")
    numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in found)
    return tuple(sorted(found, key=(lambda name: (float(name), name)) if numbers else None))


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
        with ProcessPoolExecutor(workers, spawn, initializer=_obey_parent) as pool:
            try:
                for future in as_completed([pool.submit(function, item) for item in items]):
                    future.result()
                    bar.update()
            except KeyboardInterrupt:
                for worker in multiprocessing.active_children():
                    worker.terminate()  # else their shards would be waited for
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _obey_parent() -> None:
    """Leave Ctrl-C to the parent. Workers of a killed one would wait for ever, or write on beside the next build."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        cure = "pip install apache-beam beside nml_jax, in an environment of its own, without -c constraints.txt"
        raise UserError(f"--beam needs Apache Beam: {e}", cure) from e

    def pipeline() -> Any:
        return apache_beam.Pipeline(options=PipelineOptions(shlex.split(options)))

    said = io.StringIO()  # argparse prints pages before it exits
    try:
        with contextlib.redirect_stderr(said):
            pipeline().options.get_all_options()
    except (Exception, SystemExit) as e:  # every runner has errors of its own
        why = said.getvalue().splitlines()[-1] if isinstance(e, SystemExit) else _line(e)
        raise UserError(f"Apache Beam does not take --beam={options!r}: {why}", "see the options of the runner") from e

    def spread(what: str, function: Callable[[Any], None], items: Sequence[Any]) -> None:
        console.notice(f"{what}: {len(items)} to do")
        try:
            with pipeline() as p:
                _ = p | apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(function)
        except Exception as e:  # what a worker raises comes as whatever the runner makes of it
            raise PipelineFailed(_line(e).split(" [while running")[0]) from e

    return spread


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line; `main` runs it."""
    src = 'file or folder of files, for split "train"; or folder with a folder of files for each split'
    several = "where several folders of files are given and their names differ, each is a split of its name"
    parser.add_argument("src", metavar="SRC", type=Path, nargs="+", help=f"{src}; {several}")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--image", metavar="COLUMN", help="of a table: bytes, or paths below its folder")
    parser.add_argument("--caption", metavar="COLUMN[,COLUMN]", type=_names, help="columns, or fields of KEY.json")
    parser.add_argument("--label", metavar="FIELD", default="", help="column, or field of KEY.json, with the class")
    parser.add_argument("--group", metavar="FIELD", default="", help="pairs with one value fall into the same part")
    parser.add_argument("--parts", metavar="NAME=SHARE,...", type=_shares, help="what every split is divided into")
    parser.add_argument("--resize", metavar="SIDE", type=int, help=records.RESIZE)
    parser.add_argument("--beam", metavar="OPTIONS", help='run on Apache Beam, as in --beam="--runner=DirectRunner"')


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _shares(text: str) -> dict[str, float]:
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name: float(share) for name, _, share in pairs}
    except ValueError:
        shares = {}
    if len(shares) < len(pairs) or "" in shares:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of parts, as in train=0.7,new=0.3")
    return shares


def main(args: argparse.Namespace) -> int:
    """Build what the command line asks for and print what came of it. Returns the exit code."""
    manifest = build_image_text(
        args.src,
        args.out,
        workers=args.workers,
        image=args.image,
        captions=args.caption,
        label=args.label,
        group=args.group,
        parts=args.parts,
        resize=args.resize,
        beam=args.beam,
    )
    for split, about in manifest["splits"].items():
        print(f"{split}: {about['records']} images with {about['captions']} captions")
    kinds = {"pairs": "refused", "captions of pairs that were kept": "refused_captions", "files": "refused_files"}
    for what, kind in kinds.items():
        if manifest[kind] or what == "pairs":
            print(f"refused {what}: {sum(manifest[kind].values())}, listed in {args.out / 'refused.jsonl'}")
        for reason, n in sorted(manifest[kind].items(), key=lambda item: -item[1]):
            print(f"  {n} x {reason}")
    print(args.out)
    return 0
