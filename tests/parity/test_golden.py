"""The authors' FedAPT, from their own test vectors: every figure to 1e-4."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from fedapt.core.config import TrainConfig
from fedapt.data.domains import Labelled
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import GlobalModel, PromptedText
from fedapt.model.text_tower import TextTower
from fedapt.model.tokens import PromptTokens, tokenize_prompts
from fedapt.train.aggregate import average
from fedapt.train.client import ClientTask, Learned, train_client
from tests.support.paths import GOLDEN, needs_golden

pytestmark = needs_golden
TOLERANCE = 1e-4


class Golden:
    """The vectors, and our method set up as theirs was."""

    def __init__(self) -> None:
        self._file = np.load(GOLDEN)
        self.clip = self._build_clip()
        tokens = self["tokens"].long()
        eos = tokens.argmax(-1)
        n_ctx = int(self._file["n_ctx"])
        self.text = PromptedText(
            TextTower(self.clip, "golden"),
            PromptTokens(tokens[:, : int(eos.max()) + 1], eos, n_ctx),
        )
        self.keys = self["keys"].float()
        self.logit_scale = float(self.clip.logit_scale.exp())

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._file[name])

    def _build_clip(self) -> torch.nn.Module:
        clip = import_open_clip().CLIP(
            embed_dim=512,
            vision_cfg={"image_size": 224, "layers": 1, "width": 64, "patch_size": 32},
            text_cfg={
                "context_length": 77,
                "vocab_size": 49408,
                "width": 512,
                "heads": 8,
                "layers": 2,
            },
            quick_gelu=True,
        )
        state = {
            name.removeprefix("clip."): self[name].float()
            for name in self._file.files
            if name.startswith("clip.") and not name.startswith("clip.token_")
        }
        embedding = torch.zeros(49408, 512)
        embedding[self["clip.token_ids"].long()] = self["clip.token_rows"].float()
        state["token_embedding.weight"] = embedding
        clip.load_state_dict(state, strict=True)
        return clip.requires_grad_(False).eval()

    @cached_property
    def features(self) -> Tensor:
        """Image features float32 [4 domains, 2 batches, 4 images, 512]."""
        images = self["images_u8"].float() / 255
        images = images.repeat_interleave(32, -1).repeat_interleave(32, -2)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        with torch.inference_mode():
            features = self.clip.encode_image(((images - mean) / std).flatten(0, 2))
        return features.clone().unflatten(0, images.shape[:3])

    def task(self, domain: int) -> ClientTask:
        # lr 0.01, momentum 0.9 and weight decay 1e-5 are the defaults
        return ClientTask(self.text, self.keys, domain, self.logit_scale, TrainConfig())

    def batches(self, domain: int) -> list[Labelled]:
        return [Labelled(self.features[domain, b], self["labels"][domain, b]) for b in range(2)]

    def model(self, learned: Learned, temperature: float) -> GlobalModel:
        return GlobalModel(
            self.text,
            learned.context,
            learned.adaptive_network,
            self.keys,
            temperature,
            self.logit_scale,
        )


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_the_prompts_have_the_authors_tokens(golden: Golden) -> None:
    names = tuple(str(name).replace("_", " ") for name in np.load(GOLDEN)["classes"])
    tokens = tokenize_prompts(import_open_clip().SimpleTokenizer(), names, 16, 77)
    length = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, golden["tokens"][:, :length].long())
    assert int(golden["tokens"][:, length:].abs().sum()) == 0
    assert torch.equal(tokens.eos, golden["tokens"].argmax(-1))


def test_first_client_first_batch(golden: Golden) -> None:
    context = golden["init.ctx"].clone().requires_grad_()
    network = golden["init.query"].clone().requires_grad_()
    task, batch = golden.task(0), golden.batches(0)[0]
    logits, domain_logits = task.logits(context, network, batch.features)
    loss = task.loss(context, network, batch.features, batch.labels)
    loss.backward()
    assert_close(domain_logits.detach(), golden["client0.domain_logits"])
    assert_close(logits.detach(), golden["client0.logits"])
    assert_close(loss.detach(), golden["client0.loss"])
    assert_close(context.grad, golden["client0.grad_ctx"])
    assert_close(network.grad, golden["client0.grad_query"])


@pytest.fixture(scope="module")
def rounds(golden: Golden) -> list[Learned]:
    learned = Learned(golden["init.ctx"], golden["init.query"])
    results = []
    for _ in range(3):
        updates = [train_client(golden.task(n), learned, golden.batches(n)) for n in range(4)]
        learned = average(updates, "uniform")
        results.append(learned)
    return results


@pytest.mark.parametrize("number", [0, 1, 2])
def test_aggregates_of_three_rounds(golden: Golden, rounds: list[Learned], number: int) -> None:
    assert_close(rounds[number].context, golden[f"round{number}.ctx"])
    assert_close(rounds[number].adaptive_network, golden[f"round{number}.query"])


def test_server_on_all_images(golden: Golden, rounds: list[Learned]) -> None:
    features = golden.features.flatten(0, 2)
    model = golden.model(rounds[-1], temperature=0.01)
    assert_close(features, golden["server.image_features"])
    assert_close(model.weights(features), golden["server.weights"])
    assert_close(model.exact_logits(features), golden["server.logits"])


def test_server_at_temperature_1_where_the_mixture_is_soft(
    golden: Golden, rounds: list[Learned]
) -> None:
    features = golden.features.flatten(0, 2)
    model = golden.model(rounds[-1], temperature=1.0)
    assert float(model.weights(features).amax(-1).mean()) < 0.9
    assert_close(model.exact_logits(features), golden["server_tau1.logits"])
