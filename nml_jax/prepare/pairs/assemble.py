"""Assemble the shards of image-text pairs to a dataset."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.data.class_names import simplify_group, warn_alike
from nml_jax.data.sources import texts
from nml_jax.errors import UserError
from nml_jax.hashes import hash_text
from nml_jax.prepare import records
from nml_jax.prepare.image_files import describe_resized
from nml_jax.prepare.pairs import leakage, shards, tars
from nml_jax.prepare.pairs.types import Found, Shard
from nml_jax.runs.files import write_json

MANY_GROUPS = 1_000_000  # above, names of groups are not compared


def assemble(folder: Path, job: shards.BuildJob, plan: list[Shard], splits: list[str], found: Found) -> dict[str, Any]:
    """Assemble the dataset in `folder` from the finished shards of `plan`. This can be interrupted and repeated.

    Args:
        found: the files of the sources.

    Returns:
        The manifest.

    Raises:
        UserError: there is no record.
    """
    from tensorflow_datasets.core.splits import SplitDict

    (folder / "supervision").mkdir(parents=True, exist_ok=True)
    parts = [shards.shard_folder(job, i) for i in range(len(plan))]
    about = [json.loads((part / "about.json").read_text("utf-8")) for part in parts]
    reasons: dict[str, Counter[str]] = {what: Counter() for what in shards.KINDS}
    with (folder / "refused.jsonl").open("wb") as refused:
        for name, reason in found.strays:
            reasons["file"][shards.cut_reason(reason)] += 1
            refused.write(shards.format_refusal(name, "", "file", reason).encode())
        for part, one in zip(parts, about, strict=True):
            for what in shards.KINDS:
                reasons[what].update(one["refused"][what])
            refused.write((part / "refused.jsonl").read_bytes())
    if not any(one["splits"] for one in about):
        n = sum(counts.total() for counts in reasons.values())
        raise _make_no_pair_error(folder / "refused.jsonl", n, plan, about)
    infos, entries, resized = [], {}, {}
    for name in splits:
        chosen = [(part, one["splits"][name]) for part, one in zip(parts, about, strict=True) if name in one["splits"]]
        entries[name] = {kind: sum(one[kind] for _, one in chosen) for kind in ("records", "captions")}
        resized[name] = sum(one["resized"] for _, one in chosen)
        entries[name]["sha256"] = hash_text("".join(one["sha256"] for _, one in chosen))
        if chosen:  # TFDS does not accept splits without records
            infos.append(_gather_records(folder, name, chosen))
            entries[name] |= _gather_texts(folder / "supervision", name, [part for part, _ in chosen], job)
    info = records.describe(folder, "image_text", list(job.classes) if job.label else None)
    info.set_file_format("array_record")
    info.set_splits(SplitDict(infos))
    info.write_to_directory(folder)
    manifest: dict[str, Any] = {"builder": "image_text", "schema": shards.SCHEMA}
    if job.label:
        manifest["classes"] = list(job.classes)
        manifest["missing_classes"] = records.list_missing(entries)
        manifest["dropped_classes"] = sorted({name for _, name in job.spellings} - set(job.classes))
    if job.resize:
        manifest["resized"] = describe_resized(job.resize, resized)
    manifest["splits"] = entries
    manifest |= {kind: dict(sorted(reasons[what].items())) for what, kind in shards.KINDS.items()}
    manifest["seen"] = _sum_seen(about, found)
    manifest["equal_texts"] = leakage.count_equal_texts(folder / "supervision", [info.name for info in infos])
    if job.group:
        _warn_groups(job.group, about)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _sum_seen(about: list[dict[str, Any]], found: Found) -> dict[str, Any]:
    """Return what the sources hold, so that all of it can be accounted for (see `build`)."""
    seen: Counter[str] = Counter()
    tallies: dict[str, Counter[str]] = {}
    for one in about:
        seen.update(one["seen"])
        for what, counts in one["tallies"].items():
            tallies.setdefault(what, Counter()).update(counts)
    files = {"sources": len(found.files), "refused": len(found.strays), "left_out": dict(found.left_out)}
    pairs = {name: seen[name] for name in ("pairs", "captions", "captions_of_refused")}
    return {**pairs, "files": files, **{what: dict(sorted(counts.items())) for what, counts in tallies.items()}}


def _warn_groups(field: str, about: list[dict[str, Any]]) -> None:
    groups: set[str] = set()
    for one in about:
        groups.update(map(simplify_group, one["groups"]))
        if len(groups) > MANY_GROUPS:
            return
    warn_alike(groups, f"field {field!r}, groups")


def _make_no_pair_error(refused: Path, n: int, plan: list[Shard], about: list[dict[str, Any]]) -> UserError:
    with refused.open(encoding="utf-8") as lines:
        first = json.loads(next(lines, "null"))
    where = (first["file"], first["key"]) if first else ()
    why = f"; the first of {n} refused is {' '.join(filter(None, where))}: {first['reason']}" if first else ""
    cure = "give sources with images and captions"
    if not plan or not (members := about[0]["tallies"].get("members")):
        return UserError(f"the sources have no usable pair{_name_first(plan)}{why}", cure)
    seen = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(members.items()))
    known = {role: [f".{s}" for s, r in tars.SLOTS.items() if r == role] for role in ("image", "txt", "json")}
    return UserError(
        f"the sources have no usable pair{_name_first(plan)}{why}; suffixes in {plan[0].name}: {seen}",
        f"give images ({', '.join(known['image'])}) and captions ({', '.join(known['txt'] + known['json'])}) under the "
        "same key; a key is the member's name up to its last dot, as in KEY.jpg and KEY.txt",
    )


def _name_first(plan: list[Shard]) -> str:
    names = list(dict.fromkeys(shard.name for shard in plan))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" ({names[0]}{more})" if names else ""


def _gather_records(folder: Path, split: str, chosen: list[tuple[Path, dict[str, Any]]]) -> Any:
    """Move the records of a split to the files that TFDS reads. Return TFDS's description of the split."""
    from tensorflow_datasets.core.naming import ShardedFileTemplate
    from tensorflow_datasets.core.splits import SplitInfo

    about: dict[str, Any] = {"data_dir": folder, "dataset_name": "image_text", "filetype_suffix": "array_record"}
    where = ShardedFileTemplate(split=split, **about)
    for i, (part, _) in enumerate(chosen):
        target = Path(where.sharded_filepath(shard_index=i, num_shards=len(chosen)))
        if not target.exists():
            (part / f"{split}.array_record").replace(target)
    lengths, size = [one["records"] for _, one in chosen], sum(one["bytes"] for _, one in chosen)
    return SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=where)


def _gather_texts(folder: Path, split: str, parts: list[Path], job: shards.BuildJob) -> dict[str, Any]:
    """Write the supervision index of a split. Return the manifest's counts of its classes."""
    for kind in ("captions", "keys"):
        texts.concatenate(folder / f"{split}.{kind}", [part / f"{split}.{kind}" for part in parts])
    if not job.label:
        return {}
    labels = np.concatenate([np.load(part / f"{split}.npy", allow_pickle=False) for part in parts])
    np.save(folder / f"{split}.npy", labels)
    counts = np.bincount(labels, minlength=len(job.classes)).tolist()
    return {"per_class": dict(zip(job.classes, counts, strict=True))}
