"""The authors' FedAPT, from their own test vectors: every figure to 1e-4."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from fedapt.core.config import read_config
from fedapt.data.domains import ImageSet, ImageTable, Labelled
from fedapt.data.partition import Client
from fedapt.model.backbone import Backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import GlobalModel
from fedapt.model.text_tower import TextTower
from fedapt.model.tokens import Layout, to_prompt_tokenizer, tokenize_prompts
from fedapt.training.aggregate import Average
from fedapt.training.client import train_client
from fedapt.training.methods import Learned, Setting
from fedapt.training.methods.fedapt import ADAPTIVE_NETWORK, META_PROMPT, FedAPT
from fedapt_runtime import Preprocessing
from tests.support.paths import GOLDEN, needs_golden

pytestmark = needs_golden
TOLERANCE = 1e-4


class Golden:
    """The vectors, and our method set up as theirs was."""

    def __init__(self) -> None:
        self._file = np.load(GOLDEN)
        self.clip = self._build_clip()
        self.names = tuple(str(name).replace("_", " ") for name in self._file["classes"])

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

    def method(self, temperature: float = 0.01) -> FedAPT:
        """FedAPT with four clients of eight images each."""
        n_clients, n_batches, n_images, _ = self.features.shape
        n_each = n_batches * n_images
        table = ImageTable((), self.features.flatten(0, 2), self["labels"].flatten())
        rows = torch.arange(n_clients * n_each).split(n_each)
        length = int(self._file["n_ctx"])
        return FedAPT(
            Setting(
                config=read_config(
                    None,
                    values={"prompt.context_length": length, "prompt.temperature": temperature},
                    preset="paper",
                ),
                backbone=Backbone(
                    name="golden",
                    pretrained="",
                    clip=self.clip,
                    text_tower=TextTower(self.clip, "golden").eval(),
                    tokenizer=import_open_clip().SimpleTokenizer(),
                    prompts=to_prompt_tokenizer(import_open_clip().SimpleTokenizer(), "golden"),
                    preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3),
                ),
                class_names=self.names,
                n_keys=n_clients,
                clients=tuple(
                    Client(n, str(n), n, n, ImageSet(table, own)) for n, own in enumerate(rows)
                ),
                table=table,
                views=lambda images, view: images.load().features,
                known_keys=self["keys"].float(),
            )
        )

    def batches(self, client: Client) -> list[Labelled]:
        places = torch.arange(len(client.data)).split(self.features.shape[2])
        return [client.data.subset(part).load() for part in places]

    def model(self, learned: Learned, temperature: float) -> GlobalModel:
        return self.method(temperature).global_model(learned)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_the_prompts_have_the_authors_tokens(golden: Golden) -> None:
    tokenizer = to_prompt_tokenizer(import_open_clip().SimpleTokenizer(), "CLIP")
    tokens = tokenize_prompts(tokenizer, golden.names, 16, Layout(77))
    length = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, golden["tokens"][:, :length].long())
    assert int(golden["tokens"][:, length:].abs().sum()) == 0
    assert torch.equal(tokens.pooled, golden["tokens"].argmax(-1))


def test_the_setting_is_the_authors(golden: Golden) -> None:
    setting = golden.method().setting
    assert torch.equal(setting.keys, golden["keys"].float())
    assert torch.equal(setting.text.pooled, golden["tokens"].argmax(-1))
    for n, client in enumerate(setting.clients):
        for b, batch in enumerate(golden.batches(client)):
            assert torch.equal(batch.features, golden.features[n, b])
            assert torch.equal(batch.labels, golden["labels"][n, b])


def test_first_client_first_batch(golden: Golden) -> None:
    method = golden.method()
    client = method.setting.clients[0]
    learned = {
        META_PROMPT: golden["init.ctx"].clone().requires_grad_(),
        ADAPTIVE_NETWORK: golden["init.query"].clone().requires_grad_(),
    }
    batch = golden.batches(client)[0]
    domain_logits = batch.features @ learned[ADAPTIVE_NETWORK].T
    logits = method.client_logits(learned, client.key, batch.features)
    loss = method.objective(learned, client, 0)(learned, batch)
    loss.backward()
    assert_close(domain_logits.detach(), golden["client0.domain_logits"])
    assert_close(logits.detach(), golden["client0.logits"])
    assert_close(loss.detach(), golden["client0.loss"])
    assert_close(learned[META_PROMPT].grad, golden["client0.grad_ctx"])
    assert_close(learned[ADAPTIVE_NETWORK].grad, golden["client0.grad_query"])


@pytest.fixture(scope="module")
def rounds(golden: Golden) -> list[Learned]:
    method = golden.method()
    learned = {META_PROMPT: golden["init.ctx"], ADAPTIVE_NETWORK: golden["init.query"]}
    results = []
    for number in range(3):
        average = Average(learned, "uniform")
        for client in method.setting.clients:
            share = method.share(learned, client)
            objective = method.objective(share, client, number)
            train = method.setting.config.train
            reply = train_client(objective, share, golden.batches(client), train)
            average.add(reply, method.slots(client))
        learned = average.result()
        results.append(learned)
    return results


@pytest.mark.parametrize("number", [0, 1, 2])
def test_aggregates_of_three_rounds(golden: Golden, rounds: list[Learned], number: int) -> None:
    assert_close(rounds[number][META_PROMPT], golden[f"round{number}.ctx"])
    assert_close(rounds[number][ADAPTIVE_NETWORK], golden[f"round{number}.query"])


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


def test_through_mixed_banks_where_the_mixture_is_one_hot(
    golden: Golden, rounds: list[Learned]
) -> None:
    method = golden.method()
    everything = ImageSet(method.setting.table, torch.arange(32)).load()
    logits = method.predictor(rounds[-1])(everything, None)
    clear = golden["server.weights"].amax(-1) > 1 - 1e-6
    assert int(clear.sum()) > 8
    assert_close(logits[clear], golden["server.logits"][clear])
