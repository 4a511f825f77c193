"""All fields of a config, with defaults. Sections are those of the paper (arXiv 2008.01503)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# The settings of all methods; the factory of a method in mch_jax/methods takes some of them.
SETTINGS = (
    "alpha", "beta", "continuation", "dissimilar_weight", "floor", "gamma", "margin",
    "penalty_weight", "scale", "threshold"
)  # fmt: skip


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # seeds everything random in a run
    config.method = "dch"  # lsh itq ksh hashnet adsh dch mmhh orthohash hyp2 csq dpn talr dphn
    config.objective = ConfigDict()  # settings of the method; None takes the method's own default
    for setting in SETTINGS:
        config.objective[setting] = placeholder(float)
    config.num_bits = 32  # code length q
    config.cache_dir = ""  # where runs share computed features; the workdir when empty
    config.tensorboard = False  # also write event files; needs mch_jax[tensorboard]
    config.wandb = ""  # project of Weights & Biases to log to as well; needs mch_jax[wandb]

    config.dataset = ConfigDict()
    config.dataset.name = "scenes"  # scenes coco18 coco nuswide mirflickr folder
    config.dataset.root = ""  # directory with its files
    config.dataset.settings = ConfigDict()  # further arguments of the data set's reader
    config.dataset.image_size = 256  # photos are resized to this square, then cropped on the device
    config.dataset.on_damaged = "refuse"  # or skip: what to do with photos that cannot be decoded

    config.similarity = ConfigDict()
    config.similarity.source = "labels"  # or neighbours, pairs, triplets (docs/own-photos.md)
    config.similarity.threshold = 0.5  # score in pairs.csv from which two photos are similar
    config.similarity.features = ""  # file of features to find neighbours by; empty: the model's
    config.similarity.regions = "all"  # or whole: which regions of a photo have neighbours
    config.similarity.num_groups = 64  # number of groups of neighbours
    config.similarity.num_nearest = 1  # number of groups that a region belongs to

    config.model = ConfigDict()
    config.model.weights = ""  # AlexNet (.pth, .safetensors, .npz), or lpips: conv1-conv5 only
    config.model.input_size = 224  # side of the network's input in pixels
    config.model.width = 1.0  # multiplies the channels of conv1-conv5
    config.model.conv_dtype = "float32"  # or bfloat16, in which the convolutions then compute
    config.model.hidden = 4096  # width of fc6 and fc7; 0 leaves both out
    config.model.features = ""  # file of features to replace the convolutions (docs/backbones.md)
    config.model.backbone = (
        ""  # network to replace them: package.module:function, net.onnx, vit_s16
    )
    config.model.mean = (0.485, 0.456, 0.406)  # of net.onnx's input, for photos in [0, 1]
    config.model.std = (0.229, 0.224, 0.225)  # standard deviation; both are ImageNet's
    config.model.num_anchors = 300  # number of KSH's anchors

    config.base = ConfigDict()
    config.base.train_conv = True  # False: keep convolutions fixed, compute their features once
    config.base.num_epochs = 30
    config.base.batch_size = 128  # 0: at most 128, as many as fit the training set
    config.base.optimizer = "sgd"  # or adam: decoupled weight decay
    config.base.learning_rate = 1e-3
    config.base.hash_rate = 10.0  # multiplies the learning rate of the hash layer
    config.base.momentum = 0.9
    config.base.weight_decay = 5e-4
    config.base.dropout = True
    config.base.crop_fraction = 0.0  # share of photos in a batch that a random region replaces
    config.base.warmup = 0.0  # share of the steps during which the learning rate rises linearly
    config.base.label_weight = 0.0  # weight of the label head's loss in training the features
    config.base.num_views = 8  # random regions per photo whose features fixed convolutions compute

    # A field {method}_{setting} sets an argument of the method's own training in mch_jax/methods.
    config.base.adsh_sample = 2000  # photos that ADSH trains on between two updates of the codes
    config.base.adsh_epochs = 3  # epochs over that sample
    config.base.adsh_gamma = 200.0  # weight of ADSH's quantization loss

    config.agent = ConfigDict()
    config.agent.recipe = "paper"  # or cross_fit: learn from photos that the base has not seen
    config.agent.evidence_features = ""  # file of features that labels are told from (cross_fit)
    config.agent.evidence_backbone = ""  # or an ONNX file of the network that computes them
    config.agent.evidence_size = 224  # its input, pixels on each side
    config.agent.evidence_mean = (0.485, 0.456, 0.406)  # of its input, by channel
    config.agent.evidence_std = (0.229, 0.224, 0.225)
    config.agent.num_folds = 3  # number of base models that cross_fit trains
    config.agent.select = "each"  # or set: one region after the other (cross_fit)
    config.agent.calibrate = False  # choose the keep threshold on photos left out (cross_fit)
    config.agent.recall_weight = 0.2  # weight of recall at distance 0 in cross_fit's reward
    config.agent.num_steps = 100  # T (Sec. 5.2.2)
    config.agent.batch_size = 256  # Sec. 5.2.2; 0: at most 2,048, as many as fit
    config.agent.optimizer = "sgd"  # or adam: decoupled weight decay
    config.agent.learning_rate = 1e-4  # Sec. 5.2.2
    config.agent.momentum = 0.9
    config.agent.weight_decay = 5e-4  # Sec. 5.2.2
    config.agent.widths = (1024, 512, 256, 128)  # hidden layers; not given in the paper
    config.agent.dropout = 0.0  # after each hidden layer
    config.agent.gradient = "sampled"  # REINFORCE (Eq. 7); exact: the expectation over both actions
    config.agent.entropy_weight = 0.0
    config.agent.reward = ""  # method whose pair loss is the reward (Eq. 6); empty: config.method
    config.agent.scale_reward = True  # divide the reward by its running root mean square

    config.encode = ConfigDict()
    config.encode.crop_ratio = 0.5  # sigma, ratio of sides (Sec. 4.3)
    config.encode.keep_threshold = 0.5  # xi (Eq. 8)
    config.encode.batch_size = 64  # images per batch, each with six regions

    config.evaluate = ConfigDict()
    config.evaluate.bucket_k = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    return config
