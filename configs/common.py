"""Every key of every config, with its default, type and meaning. Experiments start from `get_config()` and set values.

Keys are locked: an experiment cannot add one, and a misspelt key on the command line is an error. `None` marks a
placeholder whose value follows from other keys or the data. Give a tuple as Python writes it:
--config.sweep.seed='(0,1)'.

All keys except `sweep`, `condition`, `study`, `noise_related`, `stages` and `runtime` identify a run. Those choose what
to run, what to draw, where and how fast, and do not change its numbers.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "unnamed"  # names the default workdir, runs/<name>
    config.seed = 0  # initialisation, data order, augmentation and head training
    config.stages = ("pretrain", "extract", "tune", "report")  # which stages to run, in order
    # A tuple of values for any key of this file, such as sweep.optimizer.lr. The sweep is the product of all tuples.
    # `conditions` are named sets of keys where a product cannot say it: (("name", (("key", value), ...)), ...).
    config.sweep = ConfigDict({"noise": (), "seed": (), "conditions": ()})  # (): not swept
    config.condition = ""  # which of sweep.conditions a run has; the program sets it
    config.study = ""  # the report's figure for papers and findings: a key of nml_jax.reporting.studies.recipes.RECIPES
    config.init_from = ""  # start from these weights: a .safetensors file, a published folder or a run's folder

    # Wrong supervision in pre-training.
    config.noise = 0.0  # share of records with wrong supervision, in [0, 1]
    config.noise_kind = "symmetric"  # labels: symmetric | asymmetric | pair | matrix | labels | matched; caption_swap
    config.noise_seed = placeholder(int)  # None: the value of `seed`
    # asymmetric: ids of the classes S among which labels are exchanged, or a set's name: ("imagenet_cifar100",).
    config.noise_classes = ()  # (): none
    config.noise_related = ()  # names in downstream.tasks whose classes the noise is among: reports set them apart
    config.noise_rate_of = "all"  # asymmetric: `noise` is a share of "all" records or of the "classes" S
    config.noise_file = ""  # matrix: K×K .npy; labels, matched: .npy in record order, or .csv of key,label

    # Pre-training data.
    data = config.data = ConfigDict()
    data.source = "digits"  # digits (scikit-learn's) | directory (prepared) | tfds (catalogue) | texts (tables)
    data.path = ""  # directory: the prepared dataset; tfds: data_dir; texts: a folder of .tsv, .csv or .parquet files
    data.columns = ""  # texts: column of the texts, or two separated by a comma. "": the first usual name there
    data.label = ""  # texts: column of the labels. "": the first usual name there
    data.mixture = ()  # directory: several prepared datasets, one after another, instead of `path`
    data.weights = ()  # mixture: share of the examples from each dataset; (): in proportion to its size
    data.name = ""  # tfds: name of the dataset, such as "imagenet2012"
    data.train = "train"  # split to train on; of texts, a file without its ending
    data.validation_split = ""  # split to validate on; "": hold out `validation` of the training split
    data.validation = 0.1  # share of the training split held out, stratified, the same for every seed
    data.classes = ()  # keep only these class ids, renumbered in this order; (): all
    data.num_classes = placeholder(int)  # None: from the data; a number is checked against the data
    data.size = placeholder(int)  # records to train on. None: from the data; a number is checked against the data
    data.expected = placeholder(int)  # rough number of records, for --dry_run before the data exist
    data.tokenizer = ""  # captions: a tokenizer.json, or CLIP's vocabulary (.txt, .txt.gz); "": bytes, no file
    data.image_size = 224  # pixels, height = width

    # Augmentation on the host with NumPy and OpenCV, from uint8 to uint8.
    augment = config.augment = ConfigDict()
    augment.crop = "random_resized"  # random_resized | pad (zero-pad, then crop at random) | none (resize only)
    augment.scale = (0.08, 1.0)  # random_resized: share of the image's area
    augment.ratio = (3 / 4, 4 / 3)  # random_resized: aspect ratio
    augment.pad = 4  # pad: pixels on each side
    augment.flip = 0.5  # probability of a horizontal flip
    augment.randaugment = 0  # operations per image; 0: none
    augment.randaugment_magnitude = 7.0  # mean magnitude, from 0 to 10
    augment.randaugment_std = 0.5  # standard deviation of the magnitude
    augment.randaugment_prob = 0.5  # probability that a chosen operation is applied
    augment.erase = 0.0  # probability of random erasing
    augment.repeats = 1  # repeated augmentation: consecutive samples share an image
    augment.interpolation = "bicubic"  # bilinear | bicubic
    augment.resize = "shortest"  # evaluation: keep the aspect ratio and crop (shortest) | distort to a square (squash)
    augment.antialias = True  # low-pass filter when shrinking, as Pillow does
    augment.test_size = placeholder(int)  # pixels at evaluation. None: data.image_size
    augment.test_crop = 0.875  # evaluation after random_resized: side of the centre crop, as a share of the image's

    model = config.model = ConfigDict()
    model.name = "resnet50"  # a key of nml_jax.models.variants.MODELS
    model.dtype = "float32"  # type of activations; parameters are always float32
    model.mean = (0.485, 0.456, 0.406)  # per-channel mean of pixels in [0, 1]
    model.std = (0.229, 0.224, 0.225)  # per-channel standard deviation of pixels in [0, 1]
    model.drop_path = 0.0  # stochastic depth: rate of the last block, rising linearly from the first
    model.stem = "imagenet"  # ResNet: imagenet (7x7, stride 2, max-pool) | small (3x3, stride 1)
    model.width = placeholder(int)  # ResNet, BiT, Swin: channels of the first stage. None: the variant's
    model.blocks = placeholder(tuple)  # networks of stages: blocks per stage. None: the variant's
    model.widths = placeholder(tuple)  # EfficientNet, ConvNeXt: channels per stage. None: the variant's
    # ConvNeXt, CLIP: width of a hidden layer between the features and the logits or embedding; 0: none.
    # Text encoder: of the hidden layer in each block.
    model.hidden = placeholder(int)  # None: the variant's
    model.epsilon = placeholder(float)  # added to the variance in the encoder's norms. None: the variant's
    model.window = placeholder(int)  # Swin: side of an attention window in patches. None: the variant's, or 7
    model.padding = placeholder(str)  # EfficientNet: symmetric (PyTorch's) | same (TensorFlow's). None: the variant's
    model.bn_group = 0  # ResNet, EfficientNet: examples per BatchNorm statistics group; 0: the global batch
    model.bn_momentum = 0.9  # ResNet, EfficientNet: momentum of BatchNorm's running statistics
    model.zero_init_residual = True  # ResNet: last BatchNorm scale of each block starts at 0
    model.patch = placeholder(int)  # ViT, Swin: side of a patch in pixels. None: the variant's; ViT 16, Swin 4
    model.dim = placeholder(int)  # ViT, text encoder: width. None: the variant's
    model.depth = placeholder(int)  # ViT, text encoder: number of blocks. None: the variant's
    # ViT, text encoder, CLIP's ResNet: attention heads; Swin: of the first stage.
    model.heads = placeholder(int)  # None: the variant's
    model.dropout = 0.0  # ViT: rate on the output of every MLP and attention. EfficientNet: on the features
    model.pool = "cls"  # ViT: cls (class token) | gap (mean over patches). Text encoder: cls | mean | last | pooler
    model.tower = "resnet50"  # clip: the image tower, another key of MODELS; the keys above describe it
    model.embed_dim = placeholder(int)  # CLIP: dimension of the joint space. None: the variant's
    model.quick_gelu = False  # ViT, CLIP's text: x·sigmoid(1.702x) instead of GELU; OpenAI's weights need it
    model.patch_dropout = 0.0  # ViT: share of the patches that a training step leaves out
    model.text_context = 77  # CLIP: tokens of a caption, including start and end
    model.text_vocab = 49408  # CLIP: number of tokens of the tokenizer
    model.text_width = placeholder(int)  # CLIP: width of the text tower. None: the variant's
    model.text_depth = placeholder(int)  # CLIP: blocks of the text tower. None: the variant's
    model.text_heads = placeholder(int)  # CLIP: attention heads of the text tower. None: the variant's
    model.vocab = placeholder(int)  # text encoder: number of token ids. None: the variant's
    model.context = placeholder(int)  # text encoder: most tokens of a text, as it has positions. None: the variant's
    model.types = placeholder(int)  # text encoder: types of tokens, as for pairs; 0: none. None: the variant's
    model.activation = placeholder(str)  # text encoder: gelu | gelu_tanh | relu | silu. None: the variant's
    model.logit_scale = 2.659260036932778  # CLIP: initial log of the scale of the logits; ln(1/0.07)
    model.logit_bias = placeholder(float)  # CLIP: initial bias of the logits, for siglip (-10). None: no bias
    model.remat = False  # recompute activations block by block in the backward pass

    objective = config.objective = ConfigDict()
    objective.name = "supervised"  # a key of nml_jax.objectives.OBJECTIVES
    objective.chunk = 0  # clip, siglip: rows of the logits per device at a time; 0: all rows
    objective.loss = "softmax"  # supervised: softmax | bce
    objective.label_smoothing = 0.0  # share of the target spread evenly over all classes
    objective.mixup = 0.0  # Beta(a, a); 0: off
    objective.cutmix = 0.0  # Beta(a, a); 0: off. With both on, each batch draws one of the two
    objective.switch_prob = 0.5  # probability of cutmix if both are on
    objective.multi_hot = False  # bce: every mixed class is a full target of 1

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | lamb | sgd
    optimizer.lr = 1e-3  # peak learning rate at this batch size
    optimizer.schedule = "cosine"  # after the warm-up: cosine (to min_lr) | step (times gamma at every milestone)
    optimizer.min_lr = 0.0  # cosine: learning rate at the end
    optimizer.milestones = ()  # step: epochs from the start after which the rate falls, as (8.0, 11.0)
    optimizer.gamma = 0.1  # step: factor at every milestone
    optimizer.warmup_epochs = 5.0  # linear, from warmup_lr
    optimizer.warmup_steps = placeholder(int)  # instead of warmup_epochs. None: use warmup_epochs
    optimizer.warmup_lr = 0.0  # learning rate at the start of the warm-up
    optimizer.b1 = 0.9  # adamw, lamb: decay of the first moment
    optimizer.b2 = 0.999  # adamw, lamb: decay of the second moment
    optimizer.eps = 1e-8  # adamw, lamb: added to the denominator
    optimizer.momentum = 0.9  # sgd: momentum
    optimizer.nesterov = False  # sgd: Nesterov's momentum
    optimizer.weight_decay = 0.05  # decoupled for adamw and lamb; added to the gradient for sgd
    # Pairs of a regex for names such as "a/b/kernel" and a multiplier of weight_decay. The first match counts; every
    # parameter must match one. By default biases, scales, and class and position embeddings do not decay.
    optimizer.decay = ((r"(.*/)?(bias|scale|cls|pos_embed|logit_(scale|bias))", 0.0), (r".*", 1.0))  # multipliers
    optimizer.lr_mult = ((r".*", 1.0),)  # the same form, multipliers of the learning rate; 0 freezes
    # Triples of a regex and the ends of an interval. Every step clips the parameter to it.
    optimizer.clamp = ((r"(.*/)?logit_scale", 0.0, 4.605170185988092),)  # ln 100, as in CLIP
    optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0: off

    train = config.train = ConfigDict()
    train.batch = 256  # global batch
    train.micro_batches = 1  # parts of a batch; the gradient is the whole's, except for BatchNorm and random draws
    train.epochs = 90.0  # epochs of the training split
    train.ema = 0.0  # decay of the exponential moving average of the parameters; 0: off

    # The downstream task: train features on `train`, score in-domain on `test` and out-of-domain on `ood`.
    downstream = config.downstream = ConfigDict()
    downstream.tasks = ("digits",)  # keys of nml_jax.tasks.classification.TASKS; the keys below describe "directory"
    downstream.path = ""  # directory: the prepared dataset; "": data.path
    downstream.classes = ()  # directory: keep only these class ids; (): all
    downstream.train = "train"  # directory: training split
    downstream.test = ("test",)  # directory: in-domain splits
    downstream.ood = ()  # directory: out-of-domain splits
    # Further tasks of prepared datasets, as (name, path, training split, (in-domain splits), (out-of-domain splits)).
    downstream.directories = ()  # tasks lists their names
    downstream.catalogue = ""  # folder of the prepared catalogue datasets; "": ~/tensorflow_datasets
    downstream.with_validation = False  # catalogue: train on train and validation if a dataset has both
    downstream.partners = ()  # catalogue: out-of-domain datasets, keys of nml_jax.tasks.catalogue.PARTNERS
    downstream.corruptions = ()  # cifar10_c, cifar100_c: TFDS's names of corruptions; (): the benchmark's 15
    downstream.severities = (1, 2, 3, 4, 5)  # cifar10_c, cifar100_c: severities of the corruptions
    downstream.domain_train = "real"  # domainnet: domain to train on, and to test on in-domain
    downstream.domain_test = ("clipart", "painting", "sketch")  # domainnet: out-of-domain domains
    # The shifts are the keys of nml_jax.data.images.transforms.SHIFTS.
    downstream.shifts = ()  # directory, digits: shifts for out-of-domain tests; (): none for directory, all for digits

    # The downstream task "texts": tables with named columns, .tsv, .csv, .jsonl or .parquet, for a text encoder.
    texts = config.texts = ConfigDict()
    texts.train = ""  # the training file
    texts.test = ""  # in-domain files, separated by ";". "": `holdout` of the training file
    texts.ood = ""  # out-of-domain files, separated by ";"
    texts.holdout = 0.3  # stratified share of the training file to test on, used without a test file
    texts.columns = ""  # column of the texts, or two separated by a comma for pairs. "": the first usual name there
    texts.label = ""  # column of the labels. "": the first usual name there
    texts.regression = False  # True: labels are numbers to be predicted, such as ratings; False: they are classes
    # Folder of the tokenizer, or a tokenizer.json; "": that of init_from. model.name=api: one that counts its tokens.
    texts.tokenizer = ""  # "": that of init_from
    texts.length = 128  # most tokens of a text or pair, with special tokens; longer ones are cut
    texts.buckets = (8, 12, 16, 24, 32, 48, 64, 128, 256, 512)  # lengths of padded texts; each is compiled once
    texts.literal = False  # special tokens inside texts, such as [SEP]: True: plain text; False: special, as elsewhere
    texts.separator = ""  # token between the texts of a pair where the tokenizer puts none (GPT-2); "": none

    # The encoder model.name=api: a service with the interface of OpenAI's /v1/embeddings (configs/text_api.py).
    api = config.api = ConfigDict()
    api.url = ""  # address of the service; "/embeddings" is added unless it ends so
    api.model = ""  # the service's name of the model
    api.dimensions = 0  # numbers per vector to ask for, which not every model can; 0: its own number
    api.pairs = "join"  # features of two texts: join (one text, a line feed between) | compare (u, v, |u − v| and u·v)

    # The tasks of GLUE, keys of nml_jax.tasks.glue_sets.GLUE_TASKS, or "glue": all whose files are there.
    glue = config.glue = ConfigDict()
    glue.folder = ""  # folder with a folder per set, such as RTE, in the layout of GLUE, Hugging Face or TFDS
    glue.partners = ()  # out-of-domain tests. (): all whose files are there; ("none",): none
    glue.unlabelled = "drop"  # test rows without a gold label: drop | wrong (whatever is answered, as in GLUE-X)
    glue.stsb = "scores"  # STS-B and SICK: scores (regression) | classes (five, as in GLUE-X)
    glue.train_rows = 0  # most training rows of a task, stratified, the same for every seed; 0: all
    glue.test_rows = 0  # most rows of an out-of-domain test; 0: all

    extract = config.extract = ConfigDict()
    extract.weights = "raw"  # raw | ema
    extract.step = placeholder(int)  # step of the checkpoint; None: the last
    extract.layers = ("features",)  # keys of the model's outputs
    extract.batch = 256  # images per step, or texts of the shortest of texts.buckets; of longer ones, as many tokens
    extract.views = 1  # stored views per training image: 1 is the plain image, more are augmented
    extract.spectra = ("paper", "code")  # modes of nml_jax.spectrum.PRESETS

    zeroshot = config.zeroshot = ConfigDict()
    zeroshot.class_names = ""  # JSON list of names, or {dataset: names}; "": the dataset's own
    zeroshot.templates = ""  # JSON list of prompts with {c} for the class, or {dataset: prompts}; "": ours
    # Weights without a text tower: which own classes those of a task are. "": those of the same name | order (class i
    # is output i) | a JSON file {class of the task: [own class, ...]}, each by name or number.
    zeroshot.class_map = ""  # "": by name
    zeroshot.retrieval = ()  # splits of the downstream directory with captions, to measure recall in

    # Features from elsewhere, instead of pre-training and extraction (configs/features.py).
    features = config.features = ConfigDict()
    features.train = ""  # FILE, "FEATURES.npy,LABELS.npy", a folder of shards, a pattern; several are separated by ";"
    features.test = ""  # in-domain files or folders, separated by ";". "": `holdout` of the training file
    features.ood = ""  # out-of-domain files, separated by ";"
    features.holdout = 0.3  # stratified share of the training file to test on, used without a test file
    features.label = ""  # name of the label array or column. "": the only one of label, labels, y, target, class
    # Name of the feature array or list column, or names and patterns of columns of numbers, such as "f*,age".
    features.columns = ""  # "": the only one, or all columns of numbers but the label and ids
    features.group = ""  # name of a column, such as patient: rows of one value are never split up. "": none
    # The one of two classes that tune.metric=f1 is about; heads and tables number it as the second.
    features.positive = ""  # its name; "": the last one in the order of numbers or letters
    features.regression = False  # True: labels are numbers to be predicted, such as ratings; False: they are classes
    features.scale = 1.0  # real value = stored value × scale, such as for uint8
    # Larger training files are streamed in shards. L-BFGS, ridge and k-NN need eight times the memory of the features,
    # and get a sample of a quarter of this size if the file is larger.
    features.memory = 0.1  # share of the memory of this machine, or of its container's limit

    # Heads on features. Every method gets the same views, splits, epochs and number of settings.
    tune = config.tune = ConfigDict()
    tune.methods = ("linear", "mlp", "nmtune")  # keys of nml_jax.tuning.methods.METHODS
    tune.presets = ("paper", "code")  # presets of NMTune
    tune.epochs = 30  # epochs of every head; cosine to zero
    tune.steps = 0  # most steps; a large training set gets fewer epochs, at least one; 0: no limit
    tune.batch = 64  # training rows per step, each with all its views
    tune.lrs = (0.1, 0.01, 0.001)  # learning rates to choose from, for every method trained by gradient
    tune.weight_decays = (0.0, 1e-4)  # weight decays to choose from, for every method trained by gradient
    tune.cs = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # lbfgs: inverse strengths of the L2 penalty, as scikit-learn's C
    tune.alphas = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # ridge: strengths of the L2 penalty
    tune.ks = (1, 3, 5, 10, 20, 50)  # knn: numbers of neighbours
    tune.validation = 0.2  # share of the training split held out to choose these, stratified
    tune.standardize = False  # per-feature mean 0 and variance 1, from the training rows, for every method
    tune.seeds = 1  # heads per setting
    tune.shares = (1.0,)  # shares of the training rows, stratified; smaller ones are subsets of larger ones
    tune.noises = (0.0,)  # shares of wrong labels among the training rows
    tune.noise_kind = "symmetric"  # kind of these wrong labels, and of those of finetune.noises: symmetric | pair
    # What decides settings, when training stops, the recommendation and the claims of the report.
    tune.metric = "task"  # task (the task's own: settings, by the loss the rest) | one of nml_jax.evals.metrics.METRICS
    # Weights of the classes in the cross-entropy: pairs of a name and a weight, or one for each class in their order.
    tune.class_weight = ()  # (): 1 each; ("balanced",): rows / (classes · rows of the class), as in scikit-learn
    tune.calibrate = False  # probabilities: divide logits by a temperature found on held-out rows; predictions stay
    tune.suspects = "keep"  # keep | drop | relabel likely wrong labels; beside these heads the others are trained, too
    tune.start = "fresh"  # fresh (random weights) | probe (solved, its C among tune.cs); methods trained by gradient
    tune.patience = 0  # most epochs without a lower validation loss until training stops (enough: 150 steps); 0: never
    tune.halving = False  # give all settings a quarter of the epochs, and the rest to the better half alone
    tune.widen = False  # where the best setting is at the edge of its grid, try one more, by the grid's own ratio
    tune.refit = True  # train heads again on all training rows; False: without the validation part, as they were chosen
    tune.shared = False  # choose settings once, on one split; runs with the same training rows share them
    tune.width = 4  # MLP: hidden width over the feature dimension; 0: chosen by rows and dimension
    tune.depth = 1  # MLP: hidden layers
    tune.residual = True  # MLP: Z = s·MLP(F) + F, else s·MLP(F)
    tune.norm = "batch"  # MLP: batch | layer | none, after every hidden layer's product
    tune.noisytune = 0.0  # λ: weights start at W + U(−λ/2, λ/2)·std(W) (NoisyTune); methods trained by gradient
    tune.neftune = 0.0  # α: inputs get U(−1, 1)·α/√D in training (NEFTune); methods trained by gradient
    tune.gce_q = 0.7  # q of (1 − p^q)/q, which methods with GCE minimise: 0 is the cross-entropy, 1 the absolute error
    tune.nmtune = ConfigDict()  # each key replaces the preset's value; None: the preset's
    tune.nmtune.mse = placeholder(float)  # weight of the consistency term
    tune.nmtune.cov = placeholder(float)  # weight of the covariance term
    tune.nmtune.svd = placeholder(float)  # weight of the singular-value term
    tune.nmtune.per_dim = placeholder(bool)  # consistency: mean over features instead of their sum
    tune.nmtune.cross_view = placeholder(bool)  # consistency: Z of the other views against F of the first
    tune.nmtune.top = placeholder(int)  # singular-value term: number of largest values whose mean share counts
    tune.skd = ConfigDict()  # None: the default of objectives/skd.py
    tune.skd.skew = placeholder(float)  # weight of the skewness term
    tune.skd.kurtosis = placeholder(float)  # weight of the kurtosis term
    tune.skd.skew_target = placeholder(float)  # target of the absolute skewness
    tune.skd.kurtosis_target = placeholder(float)  # target of the kurtosis; a Gaussian has 3
    tune.skd.axis = placeholder(str)  # row: moments of each row over its features | batch: of each feature over rows
    tune.skd.logits = placeholder(bool)  # apply the terms to the logits as well as to Z
    tune.fgs = ConfigDict()  # None: the default of objectives/fgs.py
    tune.fgs.consistency = placeholder(float)  # weight of the perturbation consistency
    tune.fgs.variance = placeholder(float)  # weight of the variance term
    tune.fgs.distillation = placeholder(float)  # weight of the distillation of F
    tune.fgs.noise = placeholder(float)  # size of the perturbation, in units of `scale`
    tune.fgs.scale = placeholder(str)  # feature: each feature's standard deviation in the batch | one
    tune.fgs.target = placeholder(float)  # target standard deviation of a feature of Z, relative to F's
    tune.lgm = ConfigDict()  # None: the default of objectives/lgm.py
    tune.lgm.match = placeholder(float)  # weight of the distance of the gradients
    tune.lgm.noise = placeholder(float)  # size of the perturbation, in units of `scale`
    tune.lgm.scale = placeholder(str)  # feature: each feature's standard deviation in the batch | one
    tune.lgm.squared = placeholder(bool)  # squared distances

    # The stage finetune: tune encoder and head on the data of the same tasks, by AdamW with a cosine to zero.
    # The learning rate is chosen as for heads, on `tune.validation` of the training split.
    finetune = config.finetune = ConfigDict()
    finetune.methods = ("lora", "full")  # lora: factors and head | full: everything
    finetune.terms = ("none", "paper")  # none | covariance and singular-value terms of this preset of NMTune
    finetune.consistency = False  # also the preset's consistency term, with the features of the initial encoder
    finetune.nmtune = ConfigDict()  # each key replaces the preset's value; None: the preset's
    finetune.nmtune.mse = placeholder(float)  # weight of the consistency term
    finetune.nmtune.cov = placeholder(float)  # weight of the covariance term
    finetune.nmtune.svd = placeholder(float)  # weight of the singular-value term
    finetune.nmtune.per_dim = placeholder(bool)  # consistency: mean over features instead of their sum
    finetune.nmtune.top = placeholder(int)  # singular-value term: number of largest values whose mean share counts
    finetune.head = "linear"  # linear | mlp (described by the keys tune.width to tune.norm)
    # The start of the head, and so of the curve of WiSE-FT. With random weights (fresh) the curve means little.
    finetune.head_init = "probe"  # probe (trained first, on the frozen encoder) | zeroshot (CLIP) | fresh
    finetune.epochs = 30.0  # epochs of the training split
    finetune.batch = 64  # images or texts per step
    finetune.lrs = (1e-4, 1e-3)  # peak learning rates to choose from, for every method; a probe's are tune.lrs
    finetune.weight_decay = 1e-4  # decoupled; not applied to biases, norms and position embeddings
    finetune.warmup_epochs = 0.0  # linear, from 0
    finetune.clip_norm = 0.0  # largest global norm of the gradient; 0: off
    finetune.layer_decay = 1.0  # factor of the learning rate per block from the head down; 1: the same everywhere
    finetune.rank = 8  # LoRA: rank r
    finetune.alpha = 8.0  # LoRA: α in W + (α/r)·A·B
    # LoRA: vit_attention | vit_mlp | resnet_conv | text_attention | text_mlp | regexes over "a/b/kernel".
    finetune.targets = ("vit_mlp",)  # those of images are no targets in a text encoder
    finetune.noisytune = 0.0  # λ: the encoder's weights start at W + U(−λ/2, λ/2)·std(W) (NoisyTune)
    # NEFTune's α: embeddings of patches or words, or a ResNet's features, get U(−1, 1)·α/√(L·d) in training; L counts
    # the tokens of each text, and padding gets nothing.
    finetune.neftune = 0.0  # 0: off
    finetune.wise = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the tuned weights in WiSE-FT
    finetune.seeds = 1  # runs per setting
    finetune.shares = (1.0,)  # shares of the training rows, stratified; smaller ones are subsets of larger ones
    finetune.noises = (0.0,)  # shares of wrong labels among the training rows, of `tune.noise_kind`

    diagnose = config.diagnose = ConfigDict()
    diagnose.folds = 5  # folds of the cross-validation on the training features; 0: only measure them
    diagnose.rows = 2000  # most rows to cross-validate, stratified
    diagnose.start = "fresh"  # NMTune as released (fresh), or from the probe with early stopping (probe)

    # Detectors. The defaults are those of mmdetection 3.3.0 at "1x". What detectron2 (d2) or torchvision (tv) do
    # otherwise stands with the key, and configs/detect_coco.py has it as a preset.
    detect = config.detect = ConfigDict()
    detect.systems = ("retina",)  # keys of nml_jax.models.detection.SYSTEMS, trained one after another
    detect.norm = "eval"  # BatchNorm of the encoder: eval (running statistics) | frozen (d2: affine too) | train (live)
    detect.freeze = 1  # the encoder's stem and so many stages are not trained; 0: all is trained
    detect.clamp_both = True  # clamp changes of a box's log side from below, too; d2, tv: False
    detect.low_quality = "own"  # anchors that an object overlaps most get own (that object) | argmax (theirs; d2, tv)
    detect.score_threshold = 0.05  # detections need more
    detect.min_size = 0.0  # detections need longer sides, in pixels; d2, and tv in RetinaNet: -1; tv else: 0.01
    detect.nms = 0.5  # overlap above which the lower detection of a class is dropped
    detect.max_detections = 100  # per image; tv: 300 in RetinaNet
    detect.fpn = ConfigDict()
    detect.fpn.width = 256  # channels of the pyramid and of the heads' convolutions
    detect.fpn.init = "xavier"  # xavier | kaiming (d2, tv), both uniform
    detect.anchors = ConfigDict()
    detect.anchors.ratios = (0.5, 1.0, 2.0)  # height / width
    detect.anchors.rounded = ""  # round them: "" not at all | corners (tv) | sizes (tv in RetinaNet: sizes cut first)
    detect.retina = ConfigDict()
    detect.retina.strides = (8, 16, 32, 64, 128)  # of the levels; those that the encoder lacks are made from the last
    detect.retina.p6_from = "c5"  # the first level beyond the encoder's reads c5 (mmdetection, d2) | p5 (tv)
    detect.retina.tower = 4  # 3x3 convolutions before each output
    detect.retina.scales = (4.0, 5.039684199579493, 6.349604207872798)  # sides of square anchors in strides: 4·2^(i/3)
    detect.retina.positive = 0.5  # overlap of an anchor with an object from which on it is positive
    detect.retina.negative = 0.4  # overlap below which it is negative; between the two it does not count
    detect.retina.low_quality = 0.0  # an object's best anchors are positive from this overlap on
    detect.retina.beta = 0.0  # of smooth L1; 0: L1, as in all three
    detect.retina.per = "batch"  # divide losses by the positives of a batch | image (tv); no moving average as in d2
    detect.retina.top = 1000  # candidates of a level, pairs of anchor and class, before suppression
    detect.rpn = ConfigDict()  # proposals of faster and mask
    detect.rpn.strides = (4, 8, 16, 32, 64)  # of the levels; regions are pooled from those that the encoder has
    detect.rpn.scales = (8.0,)  # sides of square anchors in strides
    detect.rpn.positive = 0.7  # as in detect.retina
    detect.rpn.negative = 0.3  # as in detect.retina
    detect.rpn.low_quality = 0.3  # as in detect.retina; d2, tv: 0.0
    detect.rpn.samples = 256  # anchors of an image that are learned from
    detect.rpn.share = 0.5  # most positive ones among them
    detect.rpn.beta = 0.0  # of smooth L1; 0: L1; tv: 1/9
    detect.rpn.per = "sampled"  # divide losses by the anchors drawn | full (d2: by detect.rpn.samples an image)
    detect.rpn.before = (2000, 1000)  # candidates of a level before suppression, in training and after it
    detect.rpn.after = (1000, 1000)  # proposals of an image, in training and after it; tv: (2000, 1000)
    detect.rpn.nms = 0.7  # overlap above which the lower proposal of a level is dropped
    detect.rpn.min_size = 0.0  # proposals need longer sides than this, in pixels; tv: 0.001
    detect.roi = ConfigDict()  # regions of faster and mask
    detect.roi.positive = 0.5  # overlap of a region with an object from which on it is positive, else background
    detect.roi.samples = 512  # regions of an image that are learned from, drawn from proposals and objects
    detect.roi.share = 0.25  # most positive ones among them
    detect.roi.level_rule = "mmdetection"  # where a small number is added to a region's level: mmdetection | d2 | tv
    detect.roi.side = 7  # bins of a pooled region along each axis
    detect.roi.sampling = 2  # ROIAlign's samples per bin and axis (tv); mmdetection, d2: 0, adaptive, here at most 8
    detect.roi.aligned = True  # ROIAlign shifts by half a pixel; tv: False
    detect.roi.width = 1024  # of the two layers
    detect.roi.stds = (0.1, 0.1, 0.2, 0.2)  # the deltas of a region are divided by these
    detect.roi.beta = 0.0  # of smooth L1; 0: L1; tv: 1/9
    detect.roi.top = 1000  # candidates of an image, pairs of region and class, before suppression; elsewhere unlimited

    detect.mask = ConfigDict()  # masks of regions, beside the keys of rpn and roi
    detect.mask.low_quality = 0.5  # as in detect.retina, for regions; d2, tv: 2.0, which no overlap reaches
    detect.mask.side = 14  # bins of a pooled region along each axis; a mask has twice as many
    detect.mask.depth = 4  # 3x3 convolutions
    detect.mask.crop = 112  # side of the stored mask of an object, in its own box
    detect.mask.binarise = True  # targets are 0 or 1; tv: False

    detect.solo = ConfigDict()  # SOLOv2
    detect.solo.strides = (4, 8, 16, 32, 64)  # of the levels; the encoder's make the masks, at the finest
    detect.solo.grids = (40, 36, 24, 16, 12)  # cells along each axis, level by level
    # Least and greatest root of the area of the boxes that belong to a level, in pixels.
    detect.solo.ranges = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))  # level by level, ends included
    detect.solo.centre = 0.2  # share of a box's width and height, around its centre, whose cells are positive
    detect.solo.width = 512  # channels of the towers
    detect.solo.depth = 4  # 3x3 convolutions of a tower before its output
    detect.solo.mask_width = 128  # channels of the branch of masks
    detect.solo.kernel = 256  # size of a cell's kernel: channels of the mask features
    detect.solo.groups = 32  # of GroupNorm
    detect.solo.positives = 256  # pairs of object and cell of an image that are learned from; others are counted
    detect.solo.weight = 3.0  # of the mask loss
    detect.solo.score_threshold = 0.1  # of a cell's class
    detect.solo.candidates = 1000  # most cells above it whose masks are computed; elsewhere unlimited
    detect.solo.threshold = 0.5  # probability above which a pixel belongs to a mask
    detect.solo.top = 500  # best masks that enter Matrix-NMS
    detect.solo.sigma = 2.0  # of its Gaussian
    detect.solo.filter = 0.05  # least score after it

    # The stage detect: what it trains on, and how.
    detect.starts = ("encoder",)  # the encoder's weights at the start: encoder (the run's, or init_from) | random
    detect.data = ConfigDict()
    detect.data.source = "digits"  # digits (scenes that are drawn, no file) | directory (prepared)
    detect.data.path = ""  # directory: the dataset that `python -m nml_jax.prepare coco_folder` wrote
    detect.data.test_path = ""  # directory: another one to test on; classes are matched by name. "": `path`
    detect.data.train = "train"  # directory: split to train on
    detect.data.test = "val"  # directory: split to test on
    detect.data.scenes = 1024  # digits: scenes to train on
    detect.data.test_scenes = 256  # digits: scenes to test on, of other digits
    detect.data.kinds = ("plain",)  # digits: kinds of scenes in turn: plain | empty | crowd | touching
    # For --dry_run and launch/aot.py before the data are there; checked against them when they are.
    detect.data.num_classes = placeholder(int)  # None: from the data
    detect.data.expected = placeholder(int)  # rough number of images to train on
    detect.data.smallest = 32  # images with a shorter side, and those without an object to learn, are not trained on
    detect.data.max_objects = 100  # most objects of an image in training; more are cut, and that is said
    # A picture is resized to the largest size with its ratio whose sides are at most these pixels, and padded at the
    # right and the bottom to multiples of 32. One that is higher than wide has the turned canvas.
    detect.data.canvas = (800, 1333)  # shorter and longer side
    detect.data.scales = ()  # shorter sides to draw from in training, as (640, 672, 704); (): that of the canvas
    detect.data.flip = 0.5  # probability of a horizontal flip in training
    detect.batch = 16  # images per step
    detect.epochs = 12.0  # epochs of the images that are trained on
    detect.lr_batch = 16  # the learning rate is for so many images, and rises in proportion to `batch`; 0: not scaled
    detect.optimizer = ConfigDict()  # each key replaces that of `optimizer`; None: the same
    detect.optimizer.name = placeholder(str)  # adamw | lamb | sgd
    detect.optimizer.lr = placeholder(float)  # peak learning rate for `lr_batch` images
    detect.optimizer.schedule = placeholder(str)  # cosine | step
    detect.optimizer.milestones = placeholder(tuple)  # step: epochs after which the rate falls
    detect.optimizer.gamma = placeholder(float)  # step: factor at every milestone
    detect.optimizer.warmup_steps = placeholder(int)  # linear, from warmup_lr
    detect.optimizer.warmup_lr = placeholder(float)  # at the start of the warm-up, scaled as lr
    detect.optimizer.momentum = placeholder(float)  # sgd: momentum
    detect.optimizer.weight_decay = placeholder(float)  # decoupled for adamw and lamb; added to the gradient for sgd
    detect.optimizer.decay = placeholder(tuple)  # pairs of a regex and a multiplier of weight_decay
    detect.optimizer.clip_norm = placeholder(float)  # largest global norm of the gradient; 0: off

    # Where and how fast. Nothing here may change a number.
    runtime = config.runtime = ConfigDict()
    runtime.data_axis = -1  # devices along the mesh axis "data"; -1: the rest
    runtime.fsdp_axis = 1  # devices along the mesh axis "fsdp"
    runtime.threads = 8  # threads that read, decode and augment
    runtime.prefetch = 4  # batches to prepare ahead
    runtime.log_every = 50  # steps between lines of metrics
    runtime.eval_every = 1.0  # epochs between evaluations; 0: only at the end
    runtime.evaluators = ()  # evaluations besides validation: zeroshot (in-domain tests of the tasks) | spectrum
    runtime.save_every = 1.0  # epochs between checkpoints
    runtime.keep = 2  # number of checkpoints to keep
    runtime.keep_every = 0.0  # epochs between checkpoints that are never deleted; 0: none
    runtime.max_skipped = 10  # the run stops after so many steps in a row with a loss or gradient that is not finite
    runtime.quarantine = 1e-3  # the run stops above this share of undecodable training records
    runtime.sample_ids = False  # True: samples.jsonl lists every step's ids; False: a digest of them
    runtime.timeout = 120  # seconds that a process waits for the others
    runtime.api = ConfigDict()
    # Name of the environment variable that holds the key of the service. "": OPENAI_API_KEY at api.openai.com,
    runtime.api.key = ""  # and none at other hosts
    runtime.api.cache = ""  # folder that keeps what the service has answered; "": ~/.cache/nml_jax/embeddings
    runtime.api.batch = 64  # most texts of a request
    runtime.api.batch_tokens = 16000  # most tokens of a request, at least about (see texts.tokenizer)
    runtime.api.in_flight = 4  # most requests at a time
    runtime.api.requests_per_minute = 0  # most requests in any 60 seconds, those that fail included; 0: no limit
    runtime.api.tokens_per_minute = 0  # most tokens in any 60 seconds; 0: no limit
    runtime.api.timeout = 60.0  # seconds for a request as a whole
    runtime.api.retries = 8  # most repetitions of a request that fails
    runtime.api.pause = 0.5  # seconds before the first repetition; doubled for each further one
    runtime.api.longest_pause = 60.0  # most seconds of a pause; a service that asks for a longer one ends the run
    runtime.api.encoding = "base64"  # of vectors in replies: base64 (short) | float (for services that refuse base64)
    runtime.api.price = 0.0  # of a million tokens, for --dry_run; 0: unknown
    return config.lock()
