"""Read the weights of other projects from a .safetensors file, or from a folder as it is downloaded.

Tensors are read one by one, so that no more than the result and one tensor are in memory.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from nml_jax.errors import MissingInput, UserError
from nml_jax.models.weights import language, layouts, nml, openclip, timm
from nml_jax.models.weights.state_dict import Tree

# Names of whole files, in the order in which they are taken; and the names of configs that may be given in their place.
WHOLE = ("open_clip_model.safetensors", "model.safetensors")
CONFIGS = {"config.json": WHOLE[::-1], "open_clip_config.json": WHOLE, nml.CONFIG: WHOLE[::-1]}
INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
OTHERS = (".npz", ".h5", ".msgpack", ".onnx", ".tflite")  # forms in which weights are published too

# How safetensors names the types of numbers.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `np.asarray` reads it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _open(self.path) as file:  # opened for each tensor: pages of a mapped file count as memory until it closes
            return np.asarray(file.get_tensor(self.name), dtype)


@dataclasses.dataclass(frozen=True)
class ChangedTensor:
    """Tensors joined along the first axis, or one transposed; `np.asarray` reads them."""

    parts: tuple[StoredTensor, ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        first, *others = self.parts[0].shape
        shape = (first + sum(part.shape[0] for part in self.parts[1:]), *others)
        return shape[::-1] if self.transposed else shape

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        joined = np.concatenate([np.asarray(part, dtype) for part in self.parts])
        return joined.T if self.transposed else joined


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds .safetensors files or an index of such."""
    return any(p.name.endswith((".safetensors", INDEX)) for p in folder.iterdir())


def find_files(path: Path) -> list[Path]:
    """Return the .safetensors files of a file, folder or a folder's config: one, or the shards of an index.

    Raises:
        UserError: there is none, there are several without an index, only pickles, or a shard is missing.
    """
    if not path.exists():
        raise MissingInput(f"{path} does not exist", "give a .safetensors file, or a folder that holds one")
    order = WHOLE
    if path.name in CONFIGS and path.is_file():
        path, order = path.parent, CONFIGS[path.name]
    if path.is_file():
        _refuse_others([path])
        return _list_shards(path) if path.name.endswith(INDEX) else [path]
    for name in order:
        if (path / name).is_file():
            return [path / name]
    if indices := sorted(path.glob(f"*{INDEX}")):
        return _list_shards(indices[0])
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(p.name for p in found[:3])
        raise UserError(f"{path} holds {len(found)} .safetensors files ({names}) and no index", "give one of the files")
    _refuse_others(sorted(path.iterdir()))
    raise UserError(f"{path} holds no .safetensors file", "give the folder of a published model, or a run's folder")


def _list_shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"cannot read {index} as an index of shards: {e!r}", "download it again") from e
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names {missing[0]}, which is not there", f"download it into {index.parent}")
    return [index.parent / name for name in names]


def _refuse_others(paths: Sequence[Path]) -> None:
    """Raise UserError if a file is a pickle, or weights in a form that is not read."""
    pickles, others = ([path for path in paths if path.suffix in kinds] for kinds in (PICKLES, OTHERS))
    if pickles:
        path = pickles[0]
        raise UserError(
            f"{path} is a pickle, which can run any code when it is read",
            'convert it where PyTorch is installed: python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{path}', weights_only=True).items()}}, "
            f"'{path.with_suffix('.safetensors')}')\"",
        )
    if others:
        raise UserError(
            f"{others[0]} holds weights in a form that is not read ({others[0].suffix})",
            "take timm's folder of the same weights, which has config.json and model.safetensors: python -m "
            "nml_jax.models NAME lists the architectures",
        )


def open_tensors(path: str | Path) -> dict[str, StoredTensor | ChangedTensor]:
    """Return the tensors of a file or folder, by the names of timm or open_clip, without reading their values.

    Raises:
        UserError: a file cannot be read, is truncated, or has a dtype that we do not read.
    """
    stored: dict[str, StoredTensor] = {}
    for file in find_files(Path(path)):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118  no mapping
                part = opened.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise _make_unreadable(file, f"{name} is of type {part.get_dtype()}")
                own = StoredTensor(file, name, tuple(part.get_shape()), DTYPES[part.get_dtype()])
                stored[name.removeprefix("module.")] = own  # PyTorch's DataParallel adds this
    return _rename(stored)


def _rename(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor | ChangedTensor]:
    """Give tensors of further layouts the names of timm or open_clip."""
    alias = layouts.find_alias(stored)
    if alias is None:
        return dict(stored)
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        for pattern, replacement in alias.rules:
            name = re.sub(pattern, replacement, name)
        name, _, form = name.partition("@")
        parts.setdefault(name, {})[form] = tensor
    return {
        name: own[""] if "" in own else ChangedTensor(tuple(own[form] for form in sorted(own)), "T" in own)
        for name, own in parts.items()
    }


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as e:
        raise _make_unreadable(path, e) from e


def _make_unreadable(path: Path, why: object) -> UserError:
    text = " ".join(str(why).split())  # names of tensors may hold line breaks
    return UserError(f"cannot read {path} as safetensors: {text}", "give a complete .safetensors file")


def read_weights(path: str | Path, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Read weights in a layout of CLIP's two towers for a CLIP model, of transformers for a text encoder, and of timm.

    If there is no classifier, or one for other classes, the resulting params have no "head" and the caller keeps its
    own.

    Args:
        path: a .safetensors file, an index of shards, or a folder that holds one of them.
        like: as in `timm.import_weights`.

    Raises:
        UserError: the weights cannot be read, or do not fit the model.
    """
    tensors = open_tensors(path)
    if any(name.startswith(nml.PARAMS) for name in tensors):
        return nml.import_weights({name: np.asarray(tensor) for name, tensor in tensors.items()}, like)
    if language.is_language(like[0]):
        return language.import_weights(tensors, like, str(path))
    is_clip = any(name.startswith("visual.") for name in tensors)
    if is_clip != ("image" in like[0]):
        theirs, ours = ("a CLIP", "an image") if is_clip else ("an image", "a CLIP")
        raise UserError(
            f"{path} holds the weights of {theirs} model, but the model is {ours} model",
            "set model.name to the model that the weights were made for, or give other weights",
        )
    if is_clip:
        return openclip.import_weights(tensors, like)
    return timm.import_weights(tensors, like, head=timm.fits_head(tensors, like[0]))


def count_classes(path: str | Path) -> int | None:
    """Return for how many classes the classifier in timm's layout or ours is; None if there is none.

    Those of transformers' text encoders are not read.
    """
    tensors = open_tensors(path)
    heads = (nml.BIAS,) if language.holds_language(tensors) else (*timm.HEADS, nml.BIAS)
    return next((tensors[name].shape[0] for name in heads if name in tensors), None)
