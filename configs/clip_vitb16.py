"""CLIP ViT-B/16 pre-trained on noisy image-text pairs, YFCC15M + CC12M: the papers' CLIP setting (arXiv 2403.06869).

    python -m nml_jax.main --config=configs/clip_vitb16.py --config.noise=0.05

The recipe: batch 8192, 32 epochs, AdamW (0.9, 0.98, 1e-6), lr 5e-4, weight decay 0.1, cosine after 2,000 warm-up steps
(CLIP's number, arXiv 2103.00020; the papers do not state theirs), crops of 90 to 100 % of the area, no flip, embedding
512. The published results of this setting are transfer scores, without zero-shot accuracy. Not run here.

Prepare the data once. Both datasets are lists of URLs and captions: YFCC15M in the selection of DeCLIP
(github.com/Sense-GVT/DeCLIP), CC12M from github.com/google-research-datasets/conceptual-12m. img2dataset writes them as
tars, and the builder prepares the tars. This is CC12M, whose list lacks a header; for YFCC15M use its column names:

    sed -i '1s/^/url\\tcaption\\n/' cc12m.tsv
    img2dataset --url_list=cc12m.tsv --input_format=tsv --url_col=url --caption_col=caption \\
        --output_format=webdataset --image_size=384 --resize_mode=keep_ratio_largest --output_folder=cc12m
    python -m nml_jax.prepare image_text yfcc15m prepared/yfcc15m
    python -m nml_jax.prepare image_text cc12m prepared/cc12m

They take two to three TB. CLIP's vocabulary is bpe_simple_vocab_16e6.txt.gz from github.com/openai/CLIP; give its path:

    --config.data.tokenizer=bpe_simple_vocab_16e6.txt.gz

On 64 devices --dry_run estimates at most 24 GiB of activations on each. With model.remat or train.micro_batches=4 it
fits into 16 GB, and objective.chunk avoids the whole matrix of logits. The downstream task is a prepared directory of
labelled images: --config.downstream.path=DIR.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "clip_vitb16"
    config.stages = ("pretrain", "extract", "zeroshot", "tune", "report")
    config.noise_kind = "caption_swap"

    config.data.source = "directory"
    config.data.mixture = ("prepared/yfcc15m", "prepared/cc12m")
    config.data.expected = 15_388_848 + 12_423_374  # lengths of the lists; some URLs no longer work
    config.data.validation = 0.0005
    config.data.tokenizer = "bpe_simple_vocab_16e6.txt.gz"

    config.augment.scale = (0.9, 1.0)
    config.augment.flip = 0.0
    config.augment.test_crop = 1.0

    config.model.name = "clip_vitb16"
    config.model.dtype = "bfloat16"
    config.model.mean = (0.48145466, 0.4578275, 0.40821073)
    config.model.std = (0.26862954, 0.26130258, 0.27577711)

    config.objective.name = "clip"
    config.objective.chunk = 128

    config.optimizer.lr = 5e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.warmup_steps = 2000
    config.optimizer.decay = ((r"(.*/)?(bias|scale|cls|logit_scale|logit_bias)", 0.0), (r".*", 1.0))

    config.train.batch = 8192
    config.train.epochs = 32.0

    config.runtime.evaluators = ("spectrum",)
    config.runtime.threads = 32

    config.downstream.tasks = ("directory",)
    config.downstream.path = "prepared/downstream"
    return config.lock()
