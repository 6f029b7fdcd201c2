"""A run's settings, each declared once (`fedapt.core.declarations`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedapt.core.declarations import Strict, setting
from fedapt.core.names import METHODS

_MAX_SEED = 2**63 - 1
_MILLION = 1_000_000


@dataclass(frozen=True)
class ModelConfig(Strict):
    """The CLIP model."""

    name: str = setting(
        "lite", "the CLIP: `lite`, an OpenCLIP name, a folder, or `hf-hub:organisation/repository`"
    )
    pretrained: str = setting(
        "",
        "for an OpenCLIP name: a pretrained tag, a weights file, or `random`; empty for the others",
    )


@dataclass(frozen=True)
class DataConfig(Strict):
    """The split of images into training, validation and test sets."""

    root: str = setting("", "the folder with the domains")
    test_fraction: float = setting(
        0.2,
        "share of each class and domain kept for testing, where the data has no split",
        0.0,
        0.9,
    )
    split_seed: int = setting(0, "seed of that split", 0, _MAX_SEED)
    validation_fraction: float = setting(
        0.0,
        "share of the remaining images of each class and domain that choose the round instead of"
        " training",
        0.0,
        0.9,
    )
    shots: int = setting(0, "training images of each class and domain; 0 for all", 0, _MILLION)
    leave_out: str = setting("", "a domain that is excluded from training and only tested")
    allow_missing_classes: bool = setting(False, "let a domain lack images of a class")
    preprocess: Literal["scale", "openclip"] = setting(
        "scale",
        "conversion of 16-bit, int32 and float grey images to 8 bits: `scale` by the range of the"
        " mode, or cut off at 255 (`openclip`)",
    )
    class_names: Mapping[str, str] = setting(
        {}, "folder name -> name in the prompt, if they differ"
    )


@dataclass(frozen=True)
class PromptConfig(Strict):
    """The meta prompt and the keys."""

    context_length: int = setting(24, "learned context tokens M", 1, 64)
    class_specific: bool = setting(True, "one context per class; false for one shared by all")
    start: str = setting(
        "random", "initial context: `random`, or a phrase whose tokens end the context"
    )
    temperature: float = setting(0.01, "temperature tau of the domain weights", 1e-6, 1e3)
    keys: Literal["uniform", "normal", "signs", "orthogonal"] = setting(
        "normal",
        "distribution of the keys: uniform around 1/2 (the paper), normal, random signs, or"
        " orthogonal",
    )
    key_std: float = setting(
        0.0,
        "standard deviation of a key's values; 0 for the default: 1, or 0.29 for uniform keys",
        0.0,
        1e3,
    )
    mean_key_loss: float = setting(
        0.0,
        "weight of the class loss under the mean of all keys; improves accuracy on unknown domains",
        0.0,
        1e3,
    )
    n_keys: int = setting(
        0,
        "number of keys; 0 for one per domain; domains share fewer keys; clients of a domain"
        " divide more",
        0,
        10_000,
    )


@dataclass(frozen=True)
class FederationConfig(Strict):
    """The clients, the aggregation of their replies, and privacy."""

    clients_per_domain: int = setting(
        1, "clients of each domain; Dirichlet(alpha) distributes the labels among them", 1, 100_000
    )
    alpha: float = setting(
        0.5,
        "parameter of the Dirichlet distribution; a small value gives clients with few classes",
        1e-6,
        1e6,
    )
    min_images: int = setting(10, "minimum number of images of a client", 1, _MILLION)
    sampled: int = setting(0, "clients of a round, drawn from all; 0 for every client", 0, _MILLION)
    sampled_per_domain: int = setting(
        0, "clients of a round, drawn from each domain; 0 for every client", 0, _MILLION
    )
    join: str = setting(
        "", "checkpoint of a federation to continue; domains that are new to it get new keys"
    )
    aggregation: Literal["mean", "median", "trimmed-mean", "krum", "multi-krum"] = setting(
        "mean", "aggregation of the clients' replies"
    )
    trimmed: float = setting(
        0.2, "share of the values that the trimmed mean drops at each end", 1e-6, 0.49
    )
    faulty: int = setting(
        1,
        "maximum number of wrong replies in a round that median, trimmed mean and krum tolerate",
        1,
        _MILLION,
    )
    clip: float = setting(
        0.0,
        "maximum norm of a client's update in the aggregate; larger updates are scaled; 0 for none",
        0.0,
        1e9,
    )
    noise: float = setting(
        0.0, "noise of central differential privacy, as a multiple of `clip`; 0 for none", 0.0, 1e6
    )
    delta: float = setting(1e-5, "delta for which epsilon is reported", 1e-15, 0.5)
    node_clip: float = setting(
        0.0,
        "maximum norm of an update that a node sends; larger updates are scaled; 0 for none",
        0.0,
        1e9,
    )
    node_noise: float = setting(
        0.0,
        "noise that each node adds to its update, as a multiple of `node_clip`; 0 for none",
        0.0,
        1e6,
    )
    secure: bool = setting(
        False,
        "secure aggregation: the server learns the sum of a round's updates, and no single update",
    )
    secure_threshold: float = setting(
        2 / 3,
        "share of a client and its neighbours that must stay until the end of a round",
        0.5,
        1.0,
    )
    secure_neighbours: int = setting(
        0,
        "number of clients with which each client shares masks; 0 for the minimum for"
        " `secure_colluding` and `secure_dropping`, up to all",
        0,
        _MILLION,
    )
    secure_colluding: float = setting(
        1 / 3, "maximum share of a round's clients that collude with the server", 0.0, 0.9
    )
    secure_dropping: float = setting(
        0.1, "maximum share of a round's clients that drop out of a secure round", 0.0, 0.9
    )
    secure_range: float = setting(
        16.0, "maximum change of a single value; a node cuts off larger changes", 1e-6, 1e6
    )
    min_replies: int = setting(1, "minimum number of usable replies of a round", 1, _MILLION)
    round_seconds: float = setting(
        3600.0,
        "seconds that a round, or a stage of a secure round, waits for other machines",
        0.1,
        1e7,
    )
    max_update: float = setting(
        1000.0,
        "maximum norm of an update from another machine; larger updates are refused",
        1e-9,
        1e12,
    )


@dataclass(frozen=True)
class TrainConfig(Strict):
    """Federated training; `--preset paper` has the settings of the paper's code."""

    method: str = setting(
        "fedapt", "the federated method; see `fedapt methods`", choices=tuple(METHODS)
    )
    rounds: int = setting(50, "rounds of federation", 1, _MILLION)
    local_epochs: int = setting(1, "passes of each client over its images in a round", 1, 10_000)
    batch_size: int = setting(256, "images in a step of SGD", 1, _MILLION)
    even_batches: bool = setting(
        True,
        "batches of equal size in an epoch; false for full batches and a smaller last one",
    )
    images_per_round: int = setting(
        0,
        "maximum number of images of a client in a round; 0 for all, or the method's own maximum",
        0,
        1_000_000_000,
    )
    lr: float = setting(0.3, "learning rate of SGD", 1e-9, 1e3)
    router_lr: float = setting(
        0.0, "learning rate of the adaptive network; 0 for the value of `lr`", 0.0, 1e3
    )
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "schedule of the learning rate over the rounds"
    )
    momentum: float = setting(
        0.9, "momentum of SGD; it restarts from zero in every round", 0.0, 0.9999
    )
    weight_decay: float = setting(1e-5, "weight decay of SGD", 0.0, 10.0)
    proximal: float = setting(
        0.0, "mu of FedProx, which keeps a client near the aggregate; 0 for none", 0.0, 1e6
    )
    weighting: Literal["uniform", "samples"] = setting(
        "uniform", "weights of the clients in the average"
    )
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "precision of the text tower's matrix products in training; the rest is float32",
    )
    evaluate_every: int = setting(
        5, "number of rounds between evaluations; the last round is always evaluated", 1, _MILLION
    )
    patience: int = setting(
        0,
        "number of evaluations without better validation accuracy after which training stops; 0"
        " for never",
        0,
        _MILLION,
    )
    seed: int = setting(
        0,
        "seed of everything random in the run, except the noise of differential privacy",
        0,
        _MAX_SEED,
    )


@dataclass(frozen=True)
class UnsupervisedConfig(Strict):
    """The method `fedapt-unsupervised`; these defaults are those of the paper's code."""

    warm_up_rounds: int = setting(10, "rounds on pseudo-labels of zero-shot CLIP", 0, _MILLION)
    confidence: float = setting(0.75, "minimum confidence of a pseudo-label that is used", 0.0, 1.0)
    views: int = setting(
        4, "number of strongly augmented views of each image; rounds use them in turn", 1, 100
    )
    neighbours: int = setting(
        5,
        "number of nearest images in feature space whose predictions an image should share",
        1,
        1_000,
    )
    dispersion: float = setting(
        0.5, "weight of the loss term that separates the predictions of a batch", 0.0, 1e3
    )


@dataclass(frozen=True)
class Config(Strict):
    """All settings of a run, written to `RUN/config.toml` before training begins.

    Examples:
        >>> fedapt.Config().train.rounds
        50
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    federation: FederationConfig = FederationConfig()
    train: TrainConfig = TrainConfig()
    unsupervised: UnsupervisedConfig = UnsupervisedConfig()


# earlier names; the error for one gives the new name
RENAMED = {
    "federation.least_images": "federation.min_images",
    "federation.least_replies": "federation.min_replies",
    "federation.largest_update": "federation.max_update",
}
