"""Interface of a federated method: what is learned, a client's loss, the global prediction.

All methods have one budget: rounds, optimiser, batches, splits and seeds come from the run's
configuration. A method changes settings that its paper requires in `resolve`, and lists them in its
docstring.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedapt.core.config import Config
from fedapt.data.domains import ImageSet, ImageTable, Labelled
from fedapt.data.partition import Client, ClientInfo
from fedapt.model.backbone import Backbone
from fedapt.model.head import Head
from fedapt.model.prompt import draw_keys
from fedapt.model.prompted_clip import PromptedText, prompted_text, zero_shot_features
from fedapt.model.threads import torch_threads

# the trained tensors that are sent, by name, float32
Learned = dict[str, Tensor]
# the loss of a batch, a scalar
Objective = Callable[[Learned, Labelled], Tensor]
# images, index of their domain (None: one that no client trained in) -> logits float32 [n, C], or
# [models, n, C] where every model answers for itself
Predictor = Callable[[Labelled, int | None], Tensor]
# strongly augmented views: images, number of the view -> features float32 [n, D]
Views = Callable[[ImageSet, int], Tensor]

# values that one block keeps for the backward pass, per token and unit of its width W
_BYTES_PER_VALUE = 80

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Setting:
    """Inputs of every method of a run.

    Attributes:
        config: the run's settings after `Method.resolve`.
        backbone: the frozen CLIP.
        class_names: in the order of the labels.
        n_keys: N.
        clients: all of them.
        known_keys: keys of a federation that this one continues; further keys are drawn.
        table: all images on this machine; None without images.
        views: features of augmented images, computed on request; None where no client trains.
    """

    config: Config
    backbone: Backbone
    class_names: tuple[str, ...]
    n_keys: int
    clients: tuple[ClientInfo, ...]
    known_keys: Tensor | None = None
    table: ImageTable | None = None
    views: Views | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of matrix products in training."""
        return _DTYPES[self.config.train.precision]

    @cached_property
    def text(self) -> PromptedText:
        """The text side, float32, for evaluation and export."""
        return prompted_text(self.backbone, self.class_names, self.config.prompt.context_length)

    @cached_property
    def training_text(self) -> PromptedText:
        """The text side in the precision of training."""
        if self.dtype == torch.float32:
            return self.text
        length = self.config.prompt.context_length
        return prompted_text(self.backbone, self.class_names, length, self.dtype)

    @cached_property
    def keys(self) -> Tensor:
        """E, float32 [N, M, W], frozen."""
        prompt, width = self.config.prompt, self.backbone.text_tower.width
        seed = self.config.train.seed
        keys = draw_keys(
            self.n_keys,
            prompt.context_length,
            width,
            seed,
            prompt.keys,
            self.known_keys,
            prompt.key_std,
        )
        return keys.to(self.backbone.device)

    @cached_property
    def zero_shot(self) -> Tensor:
        """Unit text features of "a photo of a {name}.", float32 [C, D]."""
        # The result must not depend on the first caller: steps and predictions use other numbers of
        # threads, and tensors of inference mode cannot enter a client's loss.
        with torch.inference_mode(False), torch_threads(1):
            return zero_shot_features(self.backbone, self.class_names).clone()

    @property
    def prompts_bytes(self) -> int:
        """Approximate memory of a step that encodes a prompt for each class."""
        tower = self.text.tower
        tokens = len(self.class_names) * (self.config.prompt.context_length + self.text.n_after)
        return tokens * len(tower.blocks) * tower.width * _BYTES_PER_VALUE


@dataclass(frozen=True)
class Fusable:
    """A global model as an image tower and a head, from which an export is made.

    Attributes:
        head: the head behind the tower.
        names: names of the head's banks.
        exact: features float32 [n, D] -> logits float32 [n, C] as the method itself defines them.
        tower: uint8 [n, height, width, 3] -> features; None for the CLIP's own tower.
    """

    head: Head
    names: tuple[str, ...]
    exact: Callable[[Tensor], Tensor]
    tower: nn.Module | None = None


# name of the only bank of a model that does not distinguish domains
ALL_DOMAINS = ("all",)


class Method(ABC):
    """A federated method.

    Attributes:
        title: its name in tables.
        owned: tensors with one slice for each `key` or `client`; a client trains its own slice.
        sends: whether what clients learn reaches the server.
        trains: whether there is anything to train.
        adds_up: whether a client's reply is sums over its images (`add_up`), which the server adds
            to those that it has, instead of values trained by steps, which it averages.
        reads_labels: whether training reads labels; if not, labels must not choose a round either.
        side_by_side: whether clients of this process may train at the same time.
        source: the paper.
        not_fused: why its global model has no fused graph; empty if it has one.

    Examples:
        >>> from fedapt.training.methods import METHODS
        >>> issubclass(METHODS["promptfl"], fedapt.Method)
        True
    """

    title: ClassVar[str]
    owned: ClassVar[Mapping[str, str]] = {}
    sends: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    adds_up: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True
    side_by_side: ClassVar[bool] = True
    source: ClassVar[str] = ""
    not_fused: ClassVar[str] = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """The run's configuration with the changes that the method's paper requires."""
        return config

    @abstractmethod
    def begin(self) -> Learned:
        """Learned tensors before the first round, on the backbone's device."""

    @abstractmethod
    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """A client's loss in one round.

        Args:
            start: the client's part of the aggregate (`Method.share`).
            round_number: number of the round, from 0.
        """

    def add_up(self, client: Client) -> Learned:
        """A client's sums, for a method that `adds_up`."""
        raise NotImplementedError

    @abstractmethod
    def predictor(self, learned: Learned) -> Predictor:
        """The global model's logits."""

    def routing(self, learned: Learned, features: Tensor) -> Tensor | None:
        """Weights float32 [n, banks] for a method with several banks, else None."""
        return None

    def bank_names(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the keys that `routing` chooses among.

        Args:
            keys: name of each key.
        """
        return keys

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """The global model as a tower and a head; not for a method with `not_fused`.

        Args:
            keys: name of each key.
            client: the client whose model is fused, if a method has one for each client.
        """
        raise NotImplementedError(self.not_fused)

    def frozen(self) -> dict[str, Tensor]:
        """Frozen tensors that a checkpoint needs."""
        return {}

    @property
    def step_bytes(self) -> int:
        """Approximate memory of one step; it limits how many clients train in parallel."""
        return self.setting.prompts_bytes

    def slots(self, client: ClientInfo) -> dict[str, int]:
        """Tensor -> index of this client's slice."""
        index = {"key": client.key, "client": client.index}
        return {name: index[owner] for name, owner in self.owned.items()}

    def share(self, learned: Learned, client: ClientInfo) -> Learned:
        """A client's part of the aggregate: its own slices, and the shared tensors."""
        slots = self.slots(client)
        return {n: t[slots[n]] if n in slots else t for n, t in learned.items()}


class FeatureMethod(Method):
    """A method whose logits depend on the image feature only, at clients and server."""

    @abstractmethod
    def logits(self, learned: Learned, features: Tensor) -> Tensor:
        """float32 [n, C] of features float32 [n, D]."""

    @property
    def step_bytes(self) -> int:
        """Almost zero: a step encodes no prompt."""
        return 0

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""
        return lambda learned, batch: cross_entropy(
            self.logits(learned, batch.features), batch.labels
        )

    def predictor(self, learned: Learned) -> Predictor:
        """The same logits."""
        return lambda images, domain: self.logits(learned, images.features)


def text_logits(setting: Setting, features: Tensor, text: Tensor) -> Tensor:
    """exp(s) f^ . t: float32 [n, C] of features float32 [n, D] and text float32 [C, D]."""
    return setting.backbone.logit_scale * normalize(features, dim=-1) @ text.T


def n_parameters(learned: Learned) -> int:
    """Number of trained values."""
    return sum(tensor.numel() for tensor in learned.values())


def n_bytes(learned: Learned) -> int:
    """Number of bytes in a message."""
    return sum(tensor.numel() * tensor.element_size() for tensor in learned.values())


def replace_train(config: Config, **values: object) -> Config:
    """The configuration with other values under [train]."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))  # type: ignore[arg-type]


def replace_prompt(config: Config, **values: object) -> Config:
    """The configuration with other values under [prompt]."""
    return dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, **values))  # type: ignore[arg-type]
