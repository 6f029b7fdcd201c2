"""Small federations for tests of methods, and what a method's round is compared with.

The stub CLIP's text tower is one weighted sum, so that gradients can be derived by hand; beside the
tiny CLIP stands OpenCLIP's own text tower with all of its 77 tokens, under plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.core.config import Config, TrainConfig, read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import ImageSet, ImageTable, Labelled
from fedapt.data.partition import Client
from fedapt.federation.local import LocalEngine
from fedapt.training.client import ClientUpdate
from fedapt.training.loop import Measured, Progress, run_rounds
from fedapt.training.methods import Learned, Method, Setting
from fedapt.training.methods.base import n_bytes, n_parameters

# settings of a context for each class, and of one that all share
SHARED = {"prompt.class_specific": False}
KINDS = pytest.mark.parametrize("settings", [{}, SHARED], ids=["a context per class", "shared"])

# three clients, the last two of which share a key
SIZES, DOMAINS, KEYS = (6, 4, 5), [2, 0, 1], [0, 1, 1]

Array = NDArray[np.float64]
Arrays = dict[str, Array]

C, M, W, SCALE = 3, 2, 5, 7.0  # of the stub: D = W
NAMES = ("blue disc", "red square", "stripes")
SETTINGS: dict[str, Any] = {
    "train.rounds": 1,
    "train.lr": 0.1,
    "train.router_lr": 0.0,  # one rate for all that is learned, as by hand
    "train.momentum": 0.9,
    "train.weight_decay": 0.05,
    "train.local_epochs": 2,  # two steps of all images: momentum counts, and their order does not
    "train.evaluate_every": 1,
    "prompt.context_length": M,
    "prompt.temperature": 0.5,
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OFFSETS = draw(C, W, seed=101)
WEIGHTS = torch.tensor([1.0, -2.0])  # of the tokens: their order matters


class StubText(nn.Module):
    """t_c = normalise(offset_c + sum_m weight_m context_cm): as `PromptedText`, D = W."""

    tower, n_after = SimpleNamespace(blocks=(None,), width=W), 1  # of which memory is counted

    def forward(self, context: Tensor) -> Tensor:
        summed = (context * WEIGHTS[:, None]).sum(-2)  # [C, W], [W] or [batch, C or 1, W]
        return normalize(summed + OFFSETS, dim=-1)


def stub_backbone() -> Any:
    return SimpleNamespace(
        logit_scale=SCALE,
        joint_width=W,
        device=torch.device("cpu"),
        text_tower=SimpleNamespace(width=W),
    )


def make_config(settings: Mapping[str, Any] | None = None) -> Config:
    return read_config(None, [], SETTINGS | dict(settings or {}))


def make_setting(
    backbone: Any = None,
    sizes: Sequence[int] = (6, 4),
    *,
    domains: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    n_keys: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    paths: Sequence[Path] = (),
    labels: Tensor | None = None,
    views: Callable[[ImageSet, int], Tensor] | None = None,
) -> Setting:
    """Clients of these sizes, whose images lie scattered over one table.

    Args:
        backbone: the stub where None.
        domains, keys: of each client; by default one domain and one key for each.
        settings: over `SETTINGS`, unless `config` is given.
        paths: image files; as many as the clients have images.
    """
    stub = backbone is None
    backbone = stub_backbone() if stub else backbone
    domains = list(range(len(sizes))) if domains is None else domains
    keys = domains if keys is None else keys
    total = len(paths) or sum(sizes) + 3  # three images that no client has
    order = torch.randperm(total, generator=torch.Generator().manual_seed(7))
    table = ImageTable(
        tuple(paths) or tuple(Path(f"{i}.png") for i in range(total)),
        3 * draw(total, backbone.joint_width, seed=8),
        torch.arange(total) % C if labels is None else labels,
    )
    parts = torch.split(order[: sum(sizes)], list(sizes))
    clients = tuple(
        Client(i, f"client {i}", domains[i], keys[i], ImageSet(table, part.sort().values))
        for i, part in enumerate(parts)
    )
    setting = Setting(
        config=config or make_config(settings),
        backbone=backbone,
        class_names=NAMES,
        n_keys=max(keys) + 1 if n_keys is None else n_keys,
        clients=clients,
        table=table,
        views=views or (lambda images, view: torch.zeros(len(images), backbone.joint_width)),
    )
    if stub:
        setting.__dict__["text"] = StubText()
        setting.__dict__["zero_shot"] = normalize(draw(C, W, seed=9), dim=-1)
    return setting


# a round as fedapt runs it


def train_one(
    method: Method, learned: Learned, client: Client, round_number: int = 0
) -> ClientUpdate:
    """One client's reply, through the local engine."""
    (update,) = LocalEngine(method).train_clients(learned, [client], round_number)
    return update


def one_round(method: Method, learned: Learned, round_number: int = 0) -> Progress:
    """One whole round; `train.rounds` says that it is the last."""
    return run_rounds(
        LocalEngine(method),
        method,
        Progress(learned, round_number, ()),
        method.setting.config,
        lambda learned, number: Measured({}, {}),
        lambda progress: None,
        Reporter(),
    )


def rows_of(setting: Setting, rows: Sequence[int]) -> Labelled:
    return ImageSet(setting.table, torch.tensor(rows)).load()


# the same by hand


def to_numpy(learned: Learned) -> Arrays:
    return {name: tensor.double().numpy().copy() for name, tensor in learned.items()}


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(-1, keepdims=True))
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


def unit_rows(x: Array) -> Array:
    found: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return found


def cross_entropy_by_hand(logits: Array, target: NDArray[np.int64]) -> tuple[float, Array]:
    """Mean of -log p_target, and its gradient (p - one-hot) / n for the logits."""
    n = len(logits)
    gradient = softmax(logits)
    loss = -np.log(gradient[np.arange(n), target]).mean()
    gradient[np.arange(n), target] -= 1
    return float(loss), gradient / n


def text_by_hand(context: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The stub's text of [C, M, W] or [M, W], and: gradient for t [C, W] -> for the context."""
    weights = WEIGHTS.double().numpy()[:, None]
    summed = OFFSETS.double().numpy() + (context * weights).sum(-2)  # u
    length = np.linalg.norm(summed, axis=-1, keepdims=True)
    text = summed / length  # t = u / |u|;  dL/du = (dL/dt - (dL/dt . t) t) / |u|

    def backward(to_text: Array) -> Array:
        to_sum = (to_text - (to_text * text).sum(-1, keepdims=True) * text) / length
        to_context = to_sum[:, None] * weights
        return to_context if context.ndim == 3 else to_context.sum(0)

    return text, backward


def class_loss_by_hand(prompt: Array, batch: Labelled) -> tuple[float, Array]:
    """CE of the class under one prompt of the stub's text, and its gradient for the prompt."""
    unit = unit_rows(batch.features.double().numpy())
    text, backward = text_by_hand(prompt)
    loss, to_logits = cross_entropy_by_hand(SCALE * unit @ text.T, batch.labels.numpy())
    return loss, backward(SCALE * to_logits.T @ unit)


def domain_loss_by_hand(network: Array, key: int, batch: Labelled) -> tuple[float, Array]:
    """CE(Q f, n) and its gradient for Q; f is not normalised."""
    f = batch.features.double().numpy()
    loss, to_scores = cross_entropy_by_hand(f @ network.T, np.full(len(f), key))
    return loss, to_scores.T @ f


# loss and gradients of named values
Gradients = Callable[[Arrays], tuple[float, Arrays]]


def sgd_by_hand(gradients: Gradients, start: Arrays, train: TrainConfig) -> tuple[Arrays, float]:
    """`local_epochs` steps; velocity <- momentum velocity + gradient + decay x, x -= lr velocity.

    Returns:
        What was learned, and the mean loss.
    """
    x = {name: value.copy() for name, value in start.items()}
    velocity = {name: np.zeros_like(value) for name, value in x.items()}
    losses = []
    for _ in range(train.local_epochs):
        loss, found = gradients(x)
        assert found.keys() == x.keys()
        losses.append(loss)
        for name in x:
            velocity[name] = (
                train.momentum * velocity[name] + found[name] + train.weight_decay * x[name]
            )
            x[name] = x[name] - train.lr * velocity[name]
    return x, float(np.mean(losses))


def by_autograd(loss: Callable[[dict[str, Tensor]], Tensor]) -> Gradients:
    """Loss and gradients of a plain torch function, float32."""

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        leaves = {n: torch.tensor(v, dtype=torch.float32, requires_grad=True) for n, v in x.items()}
        value = loss(leaves)
        found = torch.autograd.grad(value, list(leaves.values()))
        return float(value.detach()), {
            n: g.double().numpy() for n, g in zip(leaves, found, strict=True)
        }

    return gradients


def assert_learned(found: Learned, expected: Arrays, atol: float = 5e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=0, atol=atol, err_msg=name)
        assert found[name].dtype == torch.float32
        assert not found[name].requires_grad


def assert_round(
    method: Method,
    start: Learned,
    gradients: Callable[[Client], Gradients],
    owned: Collection[str] = (),
) -> None:
    """Every client's reply and their aggregate are those by hand.

    Args:
        owned: tensors with a slice for each key, of which a client trains its own.
    """
    clients, replies = method.setting.clients, []
    for client in clients:
        assert isinstance(client, Client)
        own = {n: t[client.key] if n in owned else t for n, t in start.items()}
        expected, loss = sgd_by_hand(gradients(client), to_numpy(own), method.setting.config.train)
        update = train_one(method, start, client)
        assert_learned(update.learned, expected)
        assert update.loss == pytest.approx(loss, abs=1e-5)
        assert min(moved(update.learned, own).values()) > 0.01
        replies.append(expected)
    mean = {name: np.mean([reply[name] for reply in replies], axis=0) for name in start}
    for name in owned:
        members = [
            [reply[name] for client, reply in zip(clients, replies, strict=True) if client.key == k]
            for k in range(method.setting.n_keys)
        ]
        mean[name] = np.stack([np.mean(of_key, axis=0) for of_key in members])
    assert_learned(one_round(method, start).learned, mean)


def assert_sizes(method: Method, values: int, sent: int | None = None) -> None:
    """The number of values trained, and the bytes of a round.

    Args:
        sent: values that one client receives, and sends; all of them where None.
    """
    start = method.begin()
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    n_clients = len(method.setting.clients)
    assert record["clients"] == n_clients
    assert record["bytes_sent"] == 2 * n_clients * 4 * (values if sent is None else sent)


def assert_logits(
    method: Method, learned: Learned, images: Labelled, expected: Array, atol: float = 1e-5
) -> None:
    """The prediction is `expected`, for images of a domain that trained or of none."""
    for domain in (0, 1, None):
        found = method.predictor(learned)(images, domain)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def moved(found: Learned, start: Learned) -> dict[str, float]:
    return {name: float((found[name] - start[name]).abs().max()) for name in start}


# predictions


def weights_by_hand(scores: Array, temperature: float) -> Array:
    """w of scores z [n, N]: softmax of the standardised scores over tau."""
    if scores.shape[1] == 1:
        return np.ones_like(scores)
    spread = scores.std(axis=1, ddof=1, keepdims=True)
    return softmax((scores - scores.mean(1, keepdims=True)) / spread / temperature)


def mixture_by_hand(features: Array, weights: Array, banks: Array, scale: float = SCALE) -> Array:
    """Image by image: exp(s) times the cosine to the renormalised mixture of banks [N, C, D]."""
    rows = []
    for f, w in zip(features, weights, strict=True):
        mixed = sum(share * bank for share, bank in zip(w, banks, strict=True))
        rows.append(scale * unit_rows(np.asarray(mixed)) @ (f / np.linalg.norm(f)))
    return np.stack(rows)


# OpenCLIP's own text tower, all 77 tokens


def open_clip_text(backbone: Any, context: Tensor, names: Sequence[str] = NAMES) -> Tensor:
    """Unit text features [C, D] of "[SOS] context name. [EOS]", context [C, M, W] or [M, W]."""
    clip, length = backbone.clip, context.shape[-2]
    ids = backbone.tokenizer([f"{'X ' * length}{name}." for name in names])
    assert ids.shape == (len(names), 77)
    x = clip.token_embedding(ids)
    context = context.expand(len(names), -1, -1)
    x = torch.cat([x[:, :1], context, x[:, 1 + length :]], dim=1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    pooled = x[torch.arange(len(names)), ids.argmax(-1)] @ clip.text_projection
    return pooled / pooled.norm(dim=-1, keepdim=True)
