"""Every field of a run, once. Section numbers are those of the paper (arXiv 2008.01503)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Of any method; each says in mch_jax/methods which of them it takes.
SETTINGS = (
    "alpha", "continuation", "dissimilar_weight", "floor", "gamma", "margin", "penalty_weight"
)  # fmt: skip


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of everything that is random in a run
    config.method = "dch"  # lsh itq ksh hashnet adsh dch mmhh
    config.objective = ConfigDict()  # settings of the method, its own default where there is none
    for setting in SETTINGS:
        config.objective[setting] = placeholder(float)
    config.num_bits = 32  # code length q
    config.cache_dir = ""  # for features that runs can share; the workdir when empty
    config.tensorboard = False  # event files beside metrics.jsonl; mch_jax[tensorboard] is needed

    config.dataset = ConfigDict()
    config.dataset.name = "scenes"  # scenes coco18 coco nuswide mirflickr folder
    config.dataset.root = ""  # where its files lie
    config.dataset.settings = ConfigDict()  # further arguments of its reader
    config.dataset.image_size = 256  # photos are squashed to this once, then cropped on the device
    config.dataset.on_damaged = "refuse"  # or skip: photos that do not decode

    config.model = ConfigDict()
    config.model.weights = ""  # torchvision's AlexNet as .pth or .npz, or lpips: conv1-conv5 only
    config.model.input_size = 224  # pixels
    config.model.width = 1.0  # multiplies the channels of conv1-conv5
    config.model.hidden = 4096  # width of fc6 and fc7; 0 for neither
    config.model.features = ""  # a features file stands in for the convolutions (docs/backbones.md)
    config.model.num_anchors = 300  # of KSH

    config.base = ConfigDict()
    config.base.train_conv = True  # False: learn on features of fixed convolutions, made once
    config.base.num_epochs = 30
    config.base.batch_size = 128
    config.base.optimizer = "sgd"  # or adam: decoupled weight decay
    config.base.learning_rate = 1e-3
    config.base.hash_rate = 10.0  # learning rate of the hash layer, in multiples
    config.base.momentum = 0.9
    config.base.weight_decay = 5e-4
    config.base.dropout = True
    config.base.crop_fraction = 0.0  # share of each batch that shows a random region instead
    config.base.warmup = 0.0  # share of the steps in which the learning rate rises
    config.base.label_weight = (
        0.0  # of the label head's loss in the features; the head learns anyway
    )
    config.base.num_views = 8  # random regions made once of each photo where convolutions are fixed

    config.base.adsh_sample = 2000  # photos that ADSH's network sees between updates of the codes
    config.base.adsh_epochs = 3  # over that sample
    config.base.adsh_gamma = 200.0  # weight of its quantization loss

    config.agent = ConfigDict()
    config.agent.recipe = "paper"  # or cross_fit: learn from photos that the base had not seen
    config.agent.num_folds = 3  # of cross_fit
    config.agent.recall_weight = 0.2  # of recall at distance 0 in cross_fit's reward
    config.agent.num_steps = 100  # T (Sec. 5.2.2)
    config.agent.batch_size = 256  # Sec. 5.2.2
    config.agent.optimizer = "sgd"  # or adam: decoupled weight decay
    config.agent.learning_rate = 1e-4  # Sec. 5.2.2
    config.agent.momentum = 0.9
    config.agent.weight_decay = 5e-4  # Sec. 5.2.2
    config.agent.widths = (1024, 512, 256, 128)  # of the hidden layers; not given in the paper
    config.agent.dropout = 0.0  # after each hidden layer
    config.agent.gradient = "sampled"  # REINFORCE (Eq. 7); exact: its expectation over actions
    config.agent.entropy_weight = 0.0
    config.agent.reward = ""  # method whose loss is the reward (Eq. 6); the base's own when empty
    config.agent.scale_reward = True  # divide by a running root mean square

    config.encode = ConfigDict()
    config.encode.crop_ratio = 0.5  # sigma, ratio of sides (Sec. 4.3)
    config.encode.keep_threshold = 0.5  # xi (Eq. 8)
    config.encode.batch_size = 64  # images, six regions each

    config.evaluate = ConfigDict()
    config.evaluate.bucket_k = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    return config
