"""Every key of every config, with its default, type and meaning. Experiments start from `get_config()` and set values.

Keys are locked: an experiment cannot add one, and the command line cannot misspell one. `None` marks a placeholder,
"as the other keys or the data say". A tuple is overridden as Python writes it: --config.sweep.seed='(0,1)'.

What identifies a run is everything here except `sweep`, `stages` and `runtime`: those three choose what to run, where
and how fast, and cannot change a number.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "unnamed"  # names the default workdir, runs/<name>
    config.seed = 0  # initialisation, data order, augmentation and head training
    config.stages = ("pretrain", "extract", "tune", "report")  # which stages to run, in order
    # A tuple of values under any key of this file, as in sweep.optimizer.lr; the product of all is the sweep.
    config.sweep = ConfigDict({"noise": (), "seed": ()})  # (): not swept
    config.init_from = ""  # start from these weights: a .safetensors file (timm's names) or a run's folder

    # Wrong supervision in pre-training (METHOD: one keyed permutation).
    config.noise = 0.0  # share of records with wrong supervision, in [0, 1]
    config.noise_kind = "symmetric"  # labels: symmetric | asymmetric | pair | matrix | labels. Captions: caption_swap
    config.noise_seed = placeholder(int)  # None: the value of `seed`
    config.noise_classes = ()  # asymmetric: ids of the classes S inside which labels are exchanged
    config.noise_rate_of = "all"  # asymmetric: `noise` is a share of "all" records or of the "classes" S
    config.noise_file = ""  # matrix: K×K .npy; labels: .npy in record order, or .csv of key,label. Both fix the rate

    # Pre-training data.
    data = config.data = ConfigDict()
    data.source = "digits"  # digits (scikit-learn's, embedded) | directory (prepared) | tfds (catalogue)
    data.path = ""  # directory: the prepared dataset; tfds: data_dir
    data.mixture = ()  # directory: several prepared datasets, one after another, in place of `path`
    data.weights = ()  # mixture: share of the examples that each dataset supplies; (): as large as it is
    data.name = ""  # tfds: name of the dataset, as in "imagenet2012"
    data.train = "train"  # split to train on
    data.validation_split = ""  # a split of its own for validation; "": cut `validation` off the training split
    data.validation = 0.1  # share of the training split held out, stratified, the same for every seed
    data.classes = ()  # keep these class ids only, renumbered in this order; (): all
    data.num_classes = placeholder(int)  # None: as the data say; a number is checked against the data
    data.size = placeholder(int)  # records to train on. None: as the data say; a number is checked against the data
    data.expected = placeholder(int)  # records, roughly: --dry_run plans with it while the data are not there
    data.tokenizer = ""  # captions: a tokenizer.json, or CLIP's vocabulary (.txt, .txt.gz); "": bytes, no file
    data.image_size = 224  # pixels, height = width

    # Augmentation on the host, in NumPy and OpenCV. uint8 in, uint8 out.
    augment = config.augment = ConfigDict()
    augment.crop = "random_resized"  # random_resized | pad (zero-pad, then crop at random) | none (resize only)
    augment.scale = (0.08, 1.0)  # random_resized: share of the image's area
    augment.ratio = (3 / 4, 4 / 3)  # random_resized: aspect ratio
    augment.pad = 4  # pad: pixels on each side
    augment.flip = 0.5  # probability of a horizontal flip
    augment.randaugment = 0  # operations per image; 0: none
    augment.randaugment_magnitude = 7.0  # of 10
    augment.randaugment_std = 0.5  # standard deviation of the magnitude
    augment.randaugment_prob = 0.5  # probability that a chosen operation is applied
    augment.erase = 0.0  # probability of random erasing
    augment.repeats = 1  # repeated augmentation: consecutive samples share an image
    augment.interpolation = "bicubic"  # bilinear | bicubic
    augment.antialias = True  # low-pass filter when shrinking, as Pillow does
    augment.test_size = placeholder(int)  # pixels at evaluation. None: data.image_size
    augment.test_crop = 0.875  # evaluation after random_resized: side of the centre crop over that of the image

    model = config.model = ConfigDict()
    model.name = "resnet50"  # a key of nml_jax.models.MODELS
    model.dtype = "float32"  # of activations; parameters are always float32
    model.mean = (0.485, 0.456, 0.406)  # per-channel mean of pixels in [0, 1]
    model.std = (0.229, 0.224, 0.225)  # per-channel standard deviation of pixels in [0, 1]
    model.drop_path = 0.0  # stochastic depth: rate of the last block, rising linearly from the first
    model.stem = "imagenet"  # ResNet: imagenet (7x7, stride 2, max-pool) | small (3x3, stride 1)
    model.width = placeholder(int)  # ResNet: channels of the first stage. None: the variant's
    model.blocks = placeholder(tuple)  # ResNet: blocks per stage. None: the variant's
    model.bn_group = 0  # ResNet: examples per BatchNorm statistics group; 0: the global batch
    model.bn_momentum = 0.9  # ResNet: of the running statistics
    model.zero_init_residual = True  # ResNet: last BatchNorm scale of each block starts at 0
    model.patch = placeholder(int)  # ViT: side of a patch in pixels. None: the variant's, 16 where its name has none
    model.dim = placeholder(int)  # ViT: width. None: the variant's
    model.depth = placeholder(int)  # ViT: number of blocks. None: the variant's
    model.heads = placeholder(int)  # ViT, CLIP's ResNet: attention heads. None: the variant's
    model.dropout = 0.0  # ViT: on the output of every MLP and attention
    model.pool = "cls"  # ViT: cls (class token) | gap (mean over patches)
    model.tower = "resnet50"  # clip: the image tower, another key of MODELS; the keys above describe it
    model.embed_dim = placeholder(int)  # CLIP: dimension of the joint space. None: the variant's
    model.quick_gelu = False  # ViT, CLIP's text: x·sigmoid(1.702x) in place of GELU; OpenAI's weights need it
    model.patch_dropout = 0.0  # ViT: share of the patches that a training step leaves out
    model.text_context = 77  # CLIP: tokens of a caption, start and end included
    model.text_vocab = 49408  # CLIP: tokens that the tokenizer knows
    model.text_width = placeholder(int)  # CLIP: width of the text tower. None: the variant's
    model.text_depth = placeholder(int)  # CLIP: blocks of the text tower. None: the variant's
    model.text_heads = placeholder(int)  # CLIP: attention heads of the text tower. None: the variant's
    model.logit_scale = 2.659260036932778  # CLIP: initial log of the scale of the logits; ln(1/0.07)
    model.logit_bias = placeholder(float)  # CLIP: initial bias of the logits, for siglip (-10). None: there is none
    model.remat = False  # recompute activations block by block in the backward pass

    objective = config.objective = ConfigDict()
    objective.name = "supervised"  # a key of nml_jax.objectives.OBJECTIVES
    objective.chunk = 0  # clip, siglip: rows of the logits per device at a time; 0: all of them
    objective.loss = "softmax"  # supervised: softmax | bce
    objective.label_smoothing = 0.0  # share of the target spread evenly over all classes
    objective.mixup = 0.0  # Beta(a, a); 0: off
    objective.cutmix = 0.0  # Beta(a, a); 0: off. With both on, each batch draws one of the two
    objective.switch_prob = 0.5  # probability of cutmix where both are on
    objective.multi_hot = False  # bce: every mixed class is a full target of 1

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | lamb | sgd
    optimizer.lr = 1e-3  # peak learning rate at this batch size
    optimizer.min_lr = 0.0  # learning rate at the end of the cosine
    optimizer.warmup_epochs = 5.0  # linear, from warmup_lr
    optimizer.warmup_steps = placeholder(int)  # in place of warmup_epochs. None: as these say
    optimizer.warmup_lr = 0.0  # where the warm-up starts
    optimizer.b1 = 0.9  # adamw, lamb: decay of the first moment
    optimizer.b2 = 0.999  # adamw, lamb: decay of the second moment
    optimizer.eps = 1e-8  # adamw, lamb
    optimizer.momentum = 0.9  # sgd
    optimizer.nesterov = False  # sgd
    optimizer.weight_decay = 0.05  # decoupled for adamw and lamb; added to the gradient for sgd
    # Pairs of a regex over "a/b/kernel" and a multiplier. The first match counts; every parameter must match one.
    optimizer.decay = ((r"(.*/)?(bias|scale|cls|pos_embed|logit_(scale|bias))", 0.0), (r".*", 1.0))  # of weight_decay
    optimizer.lr_mult = ((r".*", 1.0),)  # the same form, multiplier of the learning rate; 0 freezes
    # Triples of a regex and the two ends of an interval in which every step leaves the parameter.
    optimizer.clamp = ((r"(.*/)?logit_scale", 0.0, 4.605170185988092),)  # ln 100, as CLIP does
    optimizer.clip_norm = 0.0  # global gradient norm; 0: off

    train = config.train = ConfigDict()
    train.batch = 256  # global
    train.micro_batches = 1  # parts of a batch in the model; the gradient is the whole's, but for BatchNorm and draws
    train.epochs = 90.0  # of the training split
    train.ema = 0.0  # decay of the exponential moving average of the parameters; 0: none is kept

    # The downstream task: train features on `train`, score in-domain on `test` and out-of-domain on `ood`.
    downstream = config.downstream = ConfigDict()
    downstream.tasks = ("digits",)  # of nml_jax.tasks.classification.TASKS; "directory" is described by the keys below
    downstream.path = ""  # directory: the prepared dataset; "": data.path
    downstream.classes = ()  # directory: keep these class ids only; (): all
    downstream.train = "train"  # directory: split
    downstream.test = ("test",)  # directory: in-domain splits
    downstream.ood = ()  # directory: out-of-domain splits
    downstream.catalogue = ""  # folder of the prepared catalogue datasets; "": ~/tensorflow_datasets
    downstream.with_validation = False  # catalogue: train on train and validation, where a dataset has both
    downstream.partners = ()  # catalogue: out-of-domain datasets to score on as well (data/catalogue.PARTNERS)
    downstream.corruptions = ()  # cifar10_c, cifar100_c: TFDS's names; (): the benchmark's 15
    downstream.severities = (1, 2, 3, 4, 5)  # cifar10_c, cifar100_c
    downstream.domain_train = "real"  # domainnet: domain to train on, and to test on in-domain
    downstream.domain_test = ("clipart", "painting", "sketch")  # domainnet: out-of-domain
    downstream.shifts = ()  # directory: shifts of the test images, scored as out-of-domain (data/transforms.SHIFTS)

    extract = config.extract = ConfigDict()
    extract.weights = "raw"  # raw | ema
    extract.step = placeholder(int)  # checkpoint; None: the last
    extract.layers = ("features",)  # keys of the model's outputs
    extract.batch = 256  # images per step
    extract.views = 1  # stored views per training image: 1 is the plain image, more are augmented
    extract.spectra = ("paper", "code")  # modes of nml_jax.spectrum.PRESETS

    zeroshot = config.zeroshot = ConfigDict()
    zeroshot.class_names = ""  # JSON list of names, or {dataset: names}; "": the dataset's own
    zeroshot.templates = ""  # JSON list of prompts with {c} for the class, or {dataset: prompts}; "": ours
    zeroshot.retrieval = ()  # splits of the downstream directory that have captions, to retrieve in

    # Features that somebody else has computed, in place of pre-training and extraction (configs/features.py).
    features = config.features = ConfigDict()
    features.train = ""  # FILE, or "FEATURES.npy,LABELS.npy"; formats: npy, npz, safetensors, csv, parquet
    features.test = ""  # the same; several in-domain files by ";". "": `holdout` of the training file
    features.ood = ""  # the same: out-of-domain files
    features.holdout = 0.3  # share of the training file that is tested on where there is no test file, stratified
    features.label = ""  # name of the label array or column. "": the one there is of label, labels, y, target, class
    features.columns = ""  # name of the feature array or list column. "": the only one, or all but label and id
    features.scale = 1.0  # real value = stored value × scale, as for uint8
    # Above it training features are streamed in shards. What is solved (L-BFGS, ridge, k-NN) takes eight times that,
    # and above a quarter of it sees a sample of that size.
    features.memory = 0.1  # share of this machine's memory, or of what its container may have

    # Heads on features. The same views, splits, epochs and number of settings tried for every method.
    tune = config.tune = ConfigDict()
    tune.methods = ("linear", "mlp", "nmtune")  # keys of nml_jax.tuning.methods.METHODS
    tune.presets = ("paper", "code")  # of NMTune
    tune.epochs = 30  # of every head; cosine to zero
    tune.steps = 0  # at most so many steps: with many rows epochs are fewer, but at least one; 0: no limit
    tune.batch = 64  # training rows per step, each with all its views
    tune.lrs = (0.1, 0.01, 0.001)  # the same grid for every method that is trained by gradient
    tune.weight_decays = (0.0, 1e-4)  # the same grid for every method that is trained by gradient
    tune.cs = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # lbfgs: inverse strength of the L2 penalty, as scikit-learn's C
    tune.alphas = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # ridge: strength of the L2 penalty
    tune.ks = (1, 3, 5, 10, 20, 50)  # knn: neighbours
    tune.validation = 0.2  # share of the task's training split on which these are chosen, stratified
    tune.standardize = False  # per-feature mean 0 and variance 1, from the training rows, for every method
    tune.seeds = 1  # heads per setting
    tune.shares = (1.0,)  # of the training rows, stratified; smaller ones lie within larger ones
    tune.noises = (0.0,)  # shares of wrong labels among the training rows
    tune.noise_kind = "symmetric"  # of these: symmetric | pair
    tune.width = 4  # MLP: hidden width over the feature dimension
    tune.depth = 1  # MLP: hidden layers
    tune.residual = True  # MLP: Z = s·MLP(F) + F, else s·MLP(F)
    tune.norm = "batch"  # MLP: batch | layer | none, after every hidden layer's product
    tune.noisytune = 0.0  # λ: weights start at W + U(−λ/2, λ/2)·std(W) (NoisyTune), where trained by gradient
    tune.neftune = 0.0  # α: inputs get U(−1, 1)·α/√D in training (NEFTune), where trained by gradient
    tune.nmtune = ConfigDict()  # each replaces the preset's value; None: the preset's
    tune.nmtune.mse = placeholder(float)  # weight of the consistency term
    tune.nmtune.cov = placeholder(float)  # weight of the covariance term
    tune.nmtune.svd = placeholder(float)  # weight of the singular-value term
    tune.nmtune.per_dim = placeholder(bool)  # consistency: mean over features in place of their sum
    tune.nmtune.cross_view = placeholder(bool)  # consistency: Z of the other views against F of the first
    tune.nmtune.top = placeholder(int)  # singular-value term: mean share of so many largest values
    tune.skd = ConfigDict()  # None: the default of objectives/skd.py
    tune.skd.skew = placeholder(float)  # weight of the skewness term
    tune.skd.kurtosis = placeholder(float)  # weight of the kurtosis term
    tune.skd.skew_target = placeholder(float)  # of the absolute skewness
    tune.skd.kurtosis_target = placeholder(float)  # 3 is a Gaussian's
    tune.skd.axis = placeholder(str)  # row: moments of each row over its features | batch: of each feature over rows
    tune.skd.logits = placeholder(bool)  # whether the logits count beside Z
    tune.fgs = ConfigDict()  # None: the default of objectives/fgs.py
    tune.fgs.consistency = placeholder(float)  # weight of the perturbation consistency
    tune.fgs.variance = placeholder(float)  # weight of the variance term
    tune.fgs.distillation = placeholder(float)  # weight of the distillation of F
    tune.fgs.noise = placeholder(float)  # of the perturbation, in units of `scale`
    tune.fgs.scale = placeholder(str)  # feature: each feature's standard deviation in the batch | one
    tune.fgs.target = placeholder(float)  # standard deviation of a feature of Z, over that of F's
    tune.lgm = ConfigDict()  # None: the default of objectives/lgm.py
    tune.lgm.match = placeholder(float)  # weight of the distance of the gradients
    tune.lgm.noise = placeholder(float)  # of the perturbation, in units of `scale`
    tune.lgm.scale = placeholder(str)  # feature: each feature's standard deviation in the batch | one
    tune.lgm.squared = placeholder(bool)  # squared distances

    # Encoder and head tuned on the images of the same tasks (stage finetune), by AdamW with a cosine to zero. The
    # learning rate is chosen as for heads, on `tune.validation` of the training split.
    finetune = config.finetune = ConfigDict()
    finetune.methods = ("lora", "full")  # lora: factors and head | full: everything
    finetune.terms = ("none", "paper")  # none | a preset of NMTune, of which the covariance and singular-value terms
    finetune.consistency = False  # also its consistency term, with the features of the initial encoder
    finetune.nmtune = ConfigDict()  # each replaces the preset's value; None: the preset's
    finetune.nmtune.mse = placeholder(float)  # weight of the consistency term
    finetune.nmtune.cov = placeholder(float)  # weight of the covariance term
    finetune.nmtune.svd = placeholder(float)  # weight of the singular-value term
    finetune.nmtune.per_dim = placeholder(bool)  # consistency: mean over features in place of their sum
    finetune.nmtune.top = placeholder(int)  # singular-value term: mean share of so many largest values
    finetune.head = "linear"  # linear | mlp (that of the keys tune.width to tune.norm)
    # Where the head starts, and with it the curve of WiSE-FT. Random weights (fresh) make a curve that means little.
    finetune.head_init = "probe"  # probe (trained first, on the frozen encoder) | zeroshot (CLIP) | fresh
    finetune.epochs = 30.0  # of the training split
    finetune.batch = 64  # images per step
    finetune.lrs = (1e-4, 1e-3)  # peak learning rates to choose from, for every method; a probe's are tune.lrs
    finetune.weight_decay = 1e-4  # decoupled; not of biases, norms and embeddings of positions
    finetune.warmup_epochs = 0.0  # linear, from 0
    finetune.clip_norm = 0.0  # global gradient norm; 0: off
    finetune.layer_decay = 1.0  # the learning rate falls by this factor per block from the head down; 1: it does not
    finetune.rank = 8  # LoRA: r
    finetune.alpha = 8.0  # LoRA: W + (α/r)·A·B
    finetune.targets = ("vit_mlp",)  # LoRA: vit_attention | vit_mlp | resnet_conv | regexes over "a/b/kernel"
    finetune.noisytune = 0.0  # λ: the encoder's weights start at W + U(−λ/2, λ/2)·std(W) (NoisyTune)
    finetune.neftune = 0.0  # α: patch embeddings, or a ResNet's features, get U(−1, 1)·α/√(L·d) in training (NEFTune)
    finetune.wise = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the tuned weights in WiSE-FT
    finetune.seeds = 1  # runs per setting
    finetune.shares = (1.0,)  # of the training images, stratified; smaller ones lie within larger ones

    diagnose = config.diagnose = ConfigDict()
    diagnose.folds = 5  # of the cross-validation on the training features
    diagnose.rows = 2000  # cross-validated, stratified; fewer where there are not so many

    # Where and how fast. Nothing here may change a number.
    runtime = config.runtime = ConfigDict()
    runtime.data_axis = -1  # devices along the mesh axis "data"; -1: the rest
    runtime.fsdp_axis = 1  # devices along "fsdp"
    runtime.threads = 8  # that read, decode and augment
    runtime.prefetch = 4  # batches
    runtime.log_every = 50  # steps
    runtime.eval_every = 1.0  # epochs; 0: at the end only
    runtime.evaluators = ()  # at these times, besides validation: zeroshot (in-domain tests of the tasks) | spectrum
    runtime.save_every = 1.0  # epochs
    runtime.keep = 2  # checkpoints
    runtime.keep_every = 0.0  # epochs of checkpoints that are kept for good; 0: none
    runtime.max_skipped = 10  # steps in a row with a loss or gradient that is not finite, after which the run stops
    runtime.quarantine = 1e-3  # share of the training records that may be undecodable before the run stops
    runtime.sample_ids = False  # samples.jsonl holds every step's ids; else a digest of them
    runtime.timeout = 120  # seconds that a process waits for its peers
    return config.lock()
