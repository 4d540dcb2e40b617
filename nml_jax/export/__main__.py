"""Write what a run has trained as a folder that timm, open_clip and transformers open by themselves.

    python -m nml_jax.export RUN OUT [--weights raw|ema] [--step N] [--format timm|open_clip|transformers|nml]

RUN is the folder of a run, such as runs/digits/noise=0.3,seed=0, of a fine-tuned setting in it, finetune/TASK/SETTING,
in which LoRA is merged, or of one checkpoint. An encoder becomes a folder of timm, which transformers opens, too:
config.json and model.safetensors. A CLIP becomes one of open_clip: open_clip_config.json and
open_clip_model.safetensors. A text encoder becomes one of transformers, with its tokenizer. All hold the card README.md
and the ledger noise.json. OUT must not exist; it appears when it is complete, and the same weights give the same bytes.
A network that these libraries cannot build is refused; --format=nml writes it for this package alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.export.folder import check_out, write_folder
from nml_jax.export.formats import FORMATS, choose_format, make_package
from nml_jax.export.origin import find_origin


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", type=Path, help="folder of a run, a fine-tuned setting or a checkpoint")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="default: raw")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the last")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: transformers for a text encoder, open_clip for a CLIP, else timm"
    )
    parser.add_argument("--license", default="", help="identifier for the card, such as apache-2.0; default: none")
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        check_out(args.out)
        origin = find_origin(args.run, step=args.step, weights=args.weights)
        package = make_package(origin, args.format or choose_format(origin.config), args.license)
        write_folder(args.out, origin, package)
    except UserError as e:
        console.notice(f"error: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        console.notice("interrupted; nothing was written")
        return 130
    headless = origin.tuned and not origin.num_classes and not package.task.startswith("zero")
    if headless or (origin.num_classes and package.library == "transformers"):
        console.notice(f"{args.out} holds the encoder alone: {package.library} has no place for this head")
    console.show(str(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
