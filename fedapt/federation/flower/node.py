"""A node: one party's images and CLIP, and its answers to the server's tasks.

The first message of a run makes the node read images, compute features and tokenise prompts. The
node keeps them for later messages, so a round costs no more than its training.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.config import FederationConfig
from fedapt.core.errors import CheckpointError, DataError, FederationError, UsageError
from fedapt.core.report import Reporter
from fedapt.data.collection import open_collection
from fedapt.data.domains import Domain, ImageSet
from fedapt.data.partition import Client, deal_domain
from fedapt.data.views import StrongViews
from fedapt.federation.flower.memory import Memory
from fedapt.federation.flower.party import Party
from fedapt.federation.flower.privacy import clip_and_noise
from fedapt.federation.flower.task import Place, Plan
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.training.client import ClientUpdate, train_round
from fedapt.training.evaluate import accuracy
from fedapt.training.methods import METHODS, Learned, Method, Setting


@dataclass(frozen=True)
class Score:
    """A node's report of a model.

    Attributes:
        test, validation: accuracy on the `n_test` and `n_validation` images, from 0 to 1.
        zero_shot: accuracy of zero-shot CLIP on the test images.
    """

    test: float
    zero_shot: float
    n_test: int
    validation: float
    n_validation: int


class Node:
    """A party that answers the server's tasks.

    Args:
        party: its images and CLIP.
        reporter: receives progress, on the node's own machine.
        memory: the state kept across restarts.
    """

    def __init__(
        self, party: Party, reporter: Reporter | None = None, memory: Memory | None = None
    ) -> None:
        self.party, self._reporter = party, reporter or Reporter()
        self.memory = memory or Memory()
        self._images: tuple[Plan, Backbone, Domain] | None = None
        self._method: tuple[str, Method, list[ImageSet]] | None = None

    def look_up(self, plan: Plan) -> int:
        """Load CLIP and images, compute features, and return the number of training images.

        Raises:
            ReportedError: images, classes or CLIP are not those of the federation.
        """
        return len(self._load(plan)[1].train)

    def train(self, plan: Plan, place: Place, share: Learned, keys: Tensor | None) -> ClientUpdate:
        """One client's round, with the node's own noise if the run requires it.

        Args:
            share: the client's part of the aggregate (`Method.share`).
            keys: E, float32 [N, M, W], of a method that has keys.

        Raises:
            ReportedError: images, classes or CLIP are not those of the federation, or the loss is
                not finite.
        """
        method, shares, domain = self._prepare(plan, place, keys)
        if place.share >= len(shares):
            raise FederationError(
                where=f"client {place.client}",
                shareable=True,
                found=f"part {place.share + 1} of a folder of {len(shares)}",
                expected="a part that exists",
                next_step="install the same version of fedapt on server and nodes",
            )
        client = Client(place.client, domain.name, place.domain, place.key, shares[place.share])
        update = train_round(method, client, share, plan.config.train, place.round)
        return clip_and_noise(update, share, plan.config.federation, self.memory.secret)

    def evaluate(self, plan: Plan, place: Place, learned: Learned, keys: Tensor | None) -> Score:
        """Accuracy of the global model on this node's images.

        Args:
            learned: all of the aggregate.

        Raises:
            ReportedError: images, classes or CLIP are not those of the federation.
        """
        method, _, domain = self._prepare(plan, place, keys)
        predict = method.predictor(learned)
        shares = {}
        for part, images in (("test", domain.test), ("validation", domain.validation)):
            loaded = images.load()
            # some methods cannot predict without images
            logits = predict(loaded, place.domain) if len(images) else torch.empty(0, 1)
            shares[part] = accuracy(logits, loaded.labels)
        test = domain.test.load()
        known = normalize(test.features, dim=-1) @ method.setting.zero_shot.T
        return Score(
            test=shares["test"],
            zero_shot=accuracy(known, test.labels),
            n_test=len(domain.test),
            validation=shares["validation"],
            n_validation=len(domain.validation),
        )

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return torch.device(self.party.device)

    def _prepare(
        self, plan: Plan, place: Place, keys: Tensor | None
    ) -> tuple[Method, list[ImageSet], Domain]:
        """Method, the training images of each client of the domain, and the domain."""
        backbone, domain = self._load(plan)
        name = _name_setting(plan, place, keys)
        if self._method is None or self._method[0] != name:
            self._method = None  # free memory first
            self._method = (name, *self._build(plan, place, keys, backbone, domain))
        return *self._method[1:], domain

    def _load(self, plan: Plan) -> tuple[Backbone, Domain]:
        """CLIP and images, kept until a setting that they depend on changes."""
        self._check_privacy(plan.config.federation)
        if self._images is None or not _asks_the_same(self._images[0], plan):
            self._images = self._method = None
            backbone = self._load_backbone(plan)
            self._images = (plan, backbone, self._load_domain(plan, backbone))
        return self._images[1:]

    def _check_privacy(self, run: FederationConfig) -> None:
        """Refuse a run with less privacy than this node's operator requires."""
        party, found, expected = self.party, "", ""
        if party.secure and not run.secure:
            found = "a run without secure aggregation"
            expected = "a secure run, because node.toml has secure = true"
        elif party.max_clip and not 0 < run.node_clip <= party.max_clip:
            found = f"federation.node_clip = {run.node_clip:g}"
            expected = f"above 0, and max_clip = {party.max_clip:g} of node.toml at most"
        elif run.node_noise < party.min_noise:
            found = f"federation.node_noise = {run.node_noise:g}"
            expected = f"min_noise = {party.min_noise:g} of node.toml or more"
        if found:
            raise FederationError(
                where="the node's configuration",
                shareable=True,
                found=found,
                expected=expected,
                next_step="ask the server's operator to change the settings, or change node.toml",
            )

    def _build(
        self, plan: Plan, place: Place, keys: Tensor | None, backbone: Backbone, domain: Domain
    ) -> tuple[Method, list[ImageSet]]:
        config = plan.config
        shares = deal_domain(domain, place.domain, config.federation, config.train.seed)
        table = domain.train.table
        setting = Setting(
            config=config,
            backbone=backbone,
            class_names=plan.classes,
            n_keys=plan.n_keys,
            clients=(),  # a node needs to know no other client
            table=table,
            views=StrongViews(
                table, domain.train.rows, lambda: image_encoder(backbone), self._reporter
            ),
            known_keys=keys,
        )
        return METHODS[config.train.method](setting), shares

    def _load_backbone(self, plan: Plan) -> Backbone:
        model, party = plan.config.model, self.party
        if not (name := party.model or model.name):
            raise UsageError(
                where="the node's CLIP",
                shareable=True,
                found="no CLIP; the server's CLIP is a folder on the server",
                expected=f"the local folder of the CLIP with hash {plan.clip_sha256[:12]}",
                next_step="set model=FOLDER in the node's configuration",
            )
        backbone = _load_clip(
            name,
            party.pretrained or model.pretrained,
            party.device,
            plan.config.data.preprocess,
        )
        if backbone.sha256 != plan.clip_sha256:
            raise CheckpointError(
                where="the node's CLIP",
                shareable=True,
                found=f"weights of hash {backbone.sha256[:12]}",
                expected=f"those of the federation, {plan.clip_sha256[:12]}",
                next_step="use the same weights on server and nodes",
            )
        return backbone

    def _load_domain(self, plan: Plan, backbone: Backbone) -> Domain:
        config, party = plan.config, self.party
        images = open_collection(config.data, party.root, domain=party.domain)
        unknown = set(images.classes) - set(plan.classes)
        missing = set(plan.classes) - set(images.classes)
        if unknown or (missing and not config.data.allow_missing_classes):
            raise DataError(
                where="the node's classes",
                shareable=True,
                found=", ".join(images.classes),
                expected=f"those of the federation: {', '.join(plan.classes)}",
                next_step="rename the class folders, or set the names under [data.class_names]",
            )
        images = images.renumber(plan.classes, "the federation")
        (domain,) = images.load(image_encoder(backbone), self._reporter, backbone.device)
        return domain


def _name_setting(plan: Plan, place: Place, keys: Tensor | None) -> str:
    """The identity of a node's preparations, which are reused if it is the same."""
    digest = hashlib.sha256(b"" if keys is None else keys.cpu().numpy().tobytes())
    return f"{plan} {place.domain} {digest.hexdigest()}"


def _asks_the_same(one: Plan, other: Plan) -> bool:
    """Whether two plans need the same CLIP and images; the number of keys affects neither."""
    return dataclasses.replace(one, n_keys=0) == dataclasses.replace(other, n_keys=0)


@lru_cache(maxsize=1)
def _load_clip(name: str, pretrained: str, device: str, depth: str) -> Backbone:
    """One CLIP for the process, shared by all of its parties."""
    return load_backbone(name, pretrained, device, depth)


__all__ = ["Node", "Party", "Score"]
