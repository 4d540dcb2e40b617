"""Build a prepared TFDS/ArrayRecord dataset from image-text pairs, without TensorFlow.

    python -m nml_jax.prepare image_text SRC... OUT [--workers N] [--image COLUMN] [--caption COLUMN[,COLUMN]]
        [--label FIELD] [--group FIELD --parts train=0.7,new=0.3] [--resize SIDE] [--beam="--runner=DirectRunner"]

Each SRC is one of:
  - a WebDataset tar as img2dataset writes it (KEY.jpg|jpeg|png|webp, KEY.txt, KEY.json), or a Parquet, CSV or TSV file:
    split "train";
  - a folder of such files: split "train", or the folder's name if several folders with different names are given;
  - a folder with one such folder for each split.
A table beside a tar of the same name is img2dataset's metadata and is not read.

In a tar, captions are the list "captions" in KEY.json, else KEY.txt, else "caption" in KEY.json. In a table they come
from one or several columns, which may hold lists. The images of a table are bytes, or paths below the table's folder.
In CSV and TSV, consecutive rows with the same path are one image with several captions. If the image comes back later,
that row is refused, so sort the table by image.

Every source file, or range of rows of a table, becomes one shard. One process builds it and keeps it in .OUT.partial.
After a kill, the same command builds only the missing shards. A tar is always one shard, however large. OUT contains:
  - the records in the order of the sources, with image (original bytes, or shrunk by --resize), key and perhaps label;
  - the supervision index: captions, keys and labels of every split (nml_jax/data/sources/texts.py);
  - manifest.json: counts and a SHA-256 for every split; classes and their counts; captions that two splits share; the
    number of refused pairs, captions and files by reason; and what was seen. Records and refused pairs sum to the
    pairs seen. Captions, refused captions and captions of refused pairs sum to the captions seen. In CSV and TSV, rows,
    refused lines, lines that continue a cell, blank and header lines sum to the lines. Members of tars are counted by
    suffix. Source files, refused files and files left out sum to all files;
  - refused.jsonl: every refused pair, caption of a pair that was kept, and file.

Apache Beam maps the same function over the same shards, so every runner writes the same bytes. TFDS's own Beam writer
orders records by a hash of their keys and cannot resume. Beam needs other library versions than constraints.txt:
install it beside nml_jax in an environment of its own, without the constraints.
"""

import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nml_jax import console
from nml_jax.data.class_names import list_names, merge_spellings, warn_alike
from nml_jax.errors import UserError
from nml_jax.prepare import image_files, out_folder, records
from nml_jax.prepare.pairs import shards
from nml_jax.prepare.pairs.assemble import assemble
from nml_jax.prepare.pairs.find import find
from nml_jax.prepare.pairs.read import cut
from nml_jax.prepare.pairs.spread import PipelineFailed, Spread, connect_beam, run_processes
from nml_jax.prepare.pairs.types import Columns, Found, Shard
from nml_jax.runs.files import refuse_links, write_json

AGAIN = "then run the same command again; finished shards are kept"


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
    """Build the dataset `out` from the pairs in `sources`. `out` appears once it is complete.

    Pairs that cannot be used are left out and listed. The same sources give the same records and the same manifest,
    whatever the number of workers and of restarts. A second build of `out` waits for the first, or raises.

    Args:
        sources: files and folders; see the module.
        workers: number of processes; None: one per core.
        image, captions: columns of tables; for tars, the fields of KEY.json with captions. None: the usual names.
        label: field or column with the class. The classes are its sorted values; numbers are sorted by value. Spellings
            of one class are one (data/class_names.py). A class without a record in the split "train", or in the only
            split, is dropped, and its other pairs are refused.
        group: field or column that divides every split into `parts`, named <split>_<part>. A hash of the value chooses
            the part, so equal values fall into the same part of every split, and the shares are approximate.
        parts: name -> share; the shares sum to 1.
        resize: shorter side in pixels; larger images are shrunk to it. None: keep all images as they are.
        beam: options of an Apache Beam pipeline that builds the shards. Its workers must see all files under the same
            paths.

    Returns:
        The manifest.

    Raises:
        UserError: no pair is usable, a column is missing, an option is invalid, or `out` exists already or cannot be
            written.
    """
    image_files.check_resize(resize)
    records.check_workers(workers)
    for source in sources:
        out_folder.check_out(source, out)
    parts = _check_parts(group, parts or {})
    columns = Columns(
        image, tuple(captions) if captions else None, tuple(dict.fromkeys(f for f in (label, group) if f))
    )
    try:
        found = find(sources)
        plan = [shard for split, path, name in found.files for shard in cut(split, path, name, columns)]
    except OSError as e:
        raise UserError(f"cannot read {e.filename}: {e.strerror}", "give sources that can be read") from e
    splits = _name_splits(plan, parts)
    spread = functools.partial(run_processes, workers) if beam is None else connect_beam(beam)
    with out_folder.own_out(out):
        for source in sources:
            out_folder.check_out(source, out)  # another build may have ended meanwhile
        job = shards.BuildJob("", columns, label, group, tuple(parts.items()), resize=resize)
        return _build(out, job, plan, splits, found, spread)


def _build(
    out: Path, job: shards.BuildJob, plan: list[Shard], splits: list[str], found: Found, spread: Spread
) -> dict[str, Any]:
    """Build the shards that are missing, and `out` from all of them. Return the manifest.

    Args:
        splits: their names.
        found: the files of the sources.
    """
    partial = out_folder.find_partial(out)
    job = dataclasses.replace(job, work=str(partial / "shards"))
    try:
        _resume(partial, job, plan)
        if job.label:
            classes, spellings = _collect_classes(job, plan, spread)
            job = dataclasses.replace(job, classes=classes, spellings=spellings)
        _build_shards(job, plan, spread)
        if phantoms := shards.find_phantoms(job, len(plan), splits):
            job = _drop_classes(job, phantoms)
            _build_shards(job, plan, spread)
        manifest = assemble(partial / "out", job, plan, splits, found)
        (partial / "out").rename(out.resolve())
        shutil.rmtree(partial)
    except UserError:  # the finished shards are useless, too
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except PipelineFailed as e:
        raise UserError(f"the pipeline failed: {e}", f"fix what its log reports; {AGAIN}") from e
    except BrokenProcessPool as e:
        raise UserError(f"a worker died: {e}", f"give it more memory, or use fewer --workers; {AGAIN}") from e
    except (NotADirectoryError, PermissionError) as e:
        raise UserError(f"cannot write {out}: {e}", "choose an OUT in a writable folder") from e
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", f"free or remount the disk; {AGAIN}") from e
    return manifest


def _build_shards(job: shards.BuildJob, plan: list[Shard], spread: Spread) -> None:
    """Build the shards that are not finished yet."""
    todo = [(i, shard) for i, shard in enumerate(plan) if not shards.shard_folder(job, i).is_dir()]
    if len(todo) < len(plan):
        console.notice(f"{len(plan) - len(todo)} of {len(plan)} shards are finished already")
    spread("shards", functools.partial(shards.build, job), todo)


def _drop_classes(job: shards.BuildJob, dropped: list[str]) -> shards.BuildJob:
    """Return the job without classes. Labels are numbers in the records, so all shards are built again."""
    console.notice(f"building again without classes that have no training image: {list_names(dropped)}")
    work = Path(job.work).with_name("shards_without")
    work.mkdir(exist_ok=True)
    classes = tuple(name for name in job.classes if name not in dropped)
    return dataclasses.replace(job, work=str(work), classes=classes)


def _check_parts(group: str, parts: Mapping[str, float]) -> Mapping[str, float]:
    if bool(group) != bool(parts):
        raise UserError(
            f"--group={group} and --parts must be given together", "as in --group=concept --parts=train=0.7,new=0.3"
        )
    if parts and not (all(share > 0 for share in parts.values()) and abs(sum(parts.values()) - 1) <= 1e-9):
        given = ",".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(
            f"the shares of --parts={given} must be positive and sum to 1", "as in --parts=train=0.7,new=0.3"
        )
    return parts


def _name_splits(plan: list[Shard], parts: Mapping[str, float]) -> list[str]:
    """Return the names of the splits of the dataset."""
    splits = dict.fromkeys(shard.split for shard in plan)
    names = [f"{split}_{part}" for split in splits for part in parts] or list(splits)
    for name in names:
        records.check_split(name, "rename the folder or the part")
    if len(names) > len(set(names)):
        raise UserError(f"two splits have the same name: {', '.join(sorted(names))}", "rename the folder or the part")
    return names


def _resume(partial: Path, job: shards.BuildJob, plan: list[Shard]) -> None:
    """Keep the shards of an interrupted build with the same sources and options; delete any other build."""
    limits = [
        shards.SCHEMA,
        shards.MAX_CAPTION,
        image_files.MAX_PIXELS,
        image_files.MAX_BYTES,
        records.RECORDS_PER_SHARD,
    ]
    about = {path: os.stat(path) for path in dict.fromkeys(shard.path for shard in plan)}
    sources = [[ascii(path), stat.st_size, stat.st_mtime_ns] for path, stat in about.items()]
    options = dataclasses.asdict(dataclasses.replace(job, work=""))
    wanted = {"limits": limits, "options": options, "shards": len(plan), "sources": sources}
    wanted = json.loads(json.dumps(wanted))  # tuples become lists
    path = partial / "plan.json"
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        before = None
    if before != wanted:
        if partial.exists():
            console.notice(f"{partial} is a build of other sources or with other options; starting over")
            shutil.rmtree(partial)
        (partial / "shards").mkdir(parents=True)
        write_json(path, wanted)
    refuse_links(partial)
    for unfinished in partial.glob("shards*/*.tmp"):
        shutil.rmtree(unfinished)


def _collect_classes(
    job: shards.BuildJob, plan: list[Shard], spread: Spread
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Read the labels of all shards, before any record is written. Return the classes, and (label, its class)."""
    todo = [(i, shard) for i, shard in enumerate(plan) if not shards.shard_labels(job, i).exists()]
    spread("labels", functools.partial(shards.collect_labels, job), todo)
    found = {name for i in range(len(plan)) for name in json.loads(shards.shard_labels(job, i).read_text("utf-8"))}
    if not found:
        raise UserError(f"no pair has a field {job.label!r}", "name a field of KEY.json, or a column, with --label")
    merged = merge_spellings(sorted(found))
    classes = set(merged.values())
    for name in classes:
        records.check_class(name, f"correct the field {job.label!r}, or choose another one")
    warn_alike(classes, f"field {job.label!r}, classes")
    numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in classes)
    ordered = sorted(classes, key=(lambda name: (float(name), name)) if numbers else None)
    return tuple(ordered), tuple(merged.items())
