"""CLIP's text tower under learned prompts, and the global model of FedAPT.

    t_c(w)  = normalise(text_encoder([SOS; P_c(w); tokens("{name}."); EOS]))
    logits  = exp(s) f^ . t_c(w)

The exact model encodes C prompts for every image. With a one-hot w these are the text banks
T_n = t(one-hot n). Otherwise the renormalised mixture of the banks approximates them:

    S_nc = f^ . T_nc,  G_c = T_.c T_.c',  logits_c = exp(s) (w . S_.c) / sqrt(w' G_c w)

Source: FedAPT (arXiv 2211.07864); the mixture through Gram matrices is fedapt's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.model.adaptive_network import domain_weights
from fedapt.model.backbone import Backbone
from fedapt.model.head import Head
from fedapt.model.prompt import personalise
from fedapt.model.text_tower import TextTower
from fedapt.model.tokens import PromptTokens, tokenize_prompts, tokenize_texts

ZERO_SHOT_TEMPLATE = "a photo of a {}."


class PromptedText(nn.Module):
    """Context vectors -> unit text features of every class.

    Everything except the context is frozen. The embeddings around it are looked up once. A causal
    tower encodes the token before it (SOS, which sees only itself) once.
    """

    before: Tensor
    after: Tensor
    pooled: Tensor

    def __init__(self, tower: TextTower, tokens: PromptTokens) -> None:
        super().__init__()
        self.tower = tower
        device = tower.positional_embedding.device
        context_end = tokens.n_before + tokens.context_length
        with torch.no_grad():
            embedded = tower.token_embedding(tokens.ids.to(device))
            self.register_buffer("before", embedded[:1, : tokens.n_before], persistent=False)
            self.register_buffer("after", embedded[:, context_end:], persistent=False)
            self.register_buffer("pooled", tokens.pooled.to(device), persistent=False)
            reusable = tower.is_causal and tokens.n_before > 0
            self._encoded_before = tower.encode_prefix(self.before) if reusable else None

    @property
    def n_classes(self) -> int:
        """C, the number of prompts."""
        return len(self.pooled)

    @property
    def n_after(self) -> int:
        """Number of tokens after the context."""
        return self.after.shape[1]

    def forward(self, context: Tensor) -> Tensor:
        """Encode every class under one context or a batch of them.

        A causal tower encodes a shared context once for all classes.

        Args:
            context: personalised prompts, float32 [C, M, W], [M, W] (shared by all classes),
                or [batch, C or 1, M, W].

        Returns:
            Unit text features, float32 [C, D] or [batch, C, D].
        """
        batched = context.dim() == 4
        if context.dim() == 2:
            context = context.expand(1, 1, *context.shape)
        elif not batched:
            context = context.unsqueeze(0)
        n_batch, n_contexts, length, _ = context.shape
        after, pooled = self.after.repeat(n_batch, 1, 1), self.pooled.repeat(n_batch)
        n_before = self.before.shape[1]
        if self.tower.is_causal and n_contexts == 1 < self.n_classes:
            start = torch.cat([self.before.expand(n_batch, -1, -1), context.squeeze(1)], dim=1)
            prefix = self.tower.encode_prefix(start).repeat(self.n_classes)
            features = self.tower(after, pooled - n_before - length, prefix)
        else:
            own = context.expand(-1, self.n_classes, -1, -1).flatten(0, 1)
            if self._encoded_before is not None:
                embeddings = torch.cat([own, after], dim=1)
                features = self.tower(embeddings, pooled - n_before, self._encoded_before)
            else:
                before = self.before.expand(len(own), -1, -1)
                features = self.tower(torch.cat([before, own, after], dim=1), pooled)
        features = normalize(features, dim=-1)
        return features.view(n_batch, self.n_classes, features.shape[1]) if batched else features


def prompted_text(
    backbone: Backbone,
    class_names: tuple[str, ...],
    context_length: int,
    dtype: torch.dtype = torch.float32,
) -> PromptedText:
    """The text side for these classes, frozen, on the backbone's device.

    Args:
        dtype: dtype of the matrix products, see `TextTower`.

    Raises:
        DataError: a class name and the context do not fit into the text tower.
    """
    tower = backbone.text_tower_in(dtype)
    tokens = tokenize_prompts(backbone.prompts, class_names, context_length, tower.layout)
    return PromptedText(tower, tokens).eval()


@torch.inference_mode()
def zero_shot_features(backbone: Backbone, class_names: tuple[str, ...]) -> Tensor:
    """Unit text features of "a photo of a {name}.": float32 [C, D]."""
    tower = backbone.text_tower
    texts = tuple(ZERO_SHOT_TEMPLATE.format(name) for name in class_names)
    tokens = tokenize_texts(backbone.prompts, texts, tower.layout)
    embedded = tower.token_embedding(tokens.ids.to(backbone.device))
    return normalize(tower(embedded, tokens.pooled.to(backbone.device)), dim=-1)


@dataclass(frozen=True)
class GlobalModel:
    """The server's model: the learned tensors and the frozen parts.

    Attributes:
        text: the text side of the classes.
        context: V, float32 [C, M, W] or [M, W].
        adaptive_network: Q, float32 [N, D].
        keys: E, float32 [N, M, W].
        temperature: tau.
        logit_scale: exp(s).
        mixing: mixing of the text banks: `exact` by their weights, `hard` the maximum only.
    """

    text: PromptedText
    context: Tensor
    adaptive_network: Tensor
    keys: Tensor
    temperature: float
    logit_scale: float
    mixing: str = "exact"

    @property
    def n_domains(self) -> int:
        """N, the number of keys."""
        return len(self.keys)

    @torch.inference_mode()
    def weights(self, features: Tensor) -> Tensor:
        """Domain weights float32 [n, N] of image features f, float32 [n, D], not normalised."""
        return domain_weights(features @ self.adaptive_network.T, self.temperature)

    @cached_property
    @torch.inference_mode()
    def text_banks(self) -> Tensor:
        """T, unit text features of all classes under each key alone: float32 [N, C, D].

        They are encoded once: with hundreds of classes this takes most of the time of an export.
        """
        each = torch.eye(self.n_domains, device=self.keys.device)
        return torch.stack([self.text(personalise(self.context, self.keys, w)) for w in each])

    @cached_property
    def head(self) -> Head:
        """The fused graph's head: mixed text banks in place of each image's own prompts."""
        return Head(
            self.text_banks,
            self.adaptive_network,
            self.temperature,
            self.logit_scale,
            self.mixing,
        )

    @torch.inference_mode()
    def exact_logits(self, features: Tensor, max_prompts: int = 512) -> Tensor:
        """Logits float32 [n, C] under each image's own prompt, as the method defines them.

        Args:
            features: float32 [n, D].
            max_prompts: prompts in one run of the text tower; bounds the memory.
        """
        n_images = max(1, max_prompts // self.text.n_classes)
        rows = []
        for part in torch.split(features, n_images):
            prompts = personalise(self.context, self.keys, self.weights(part))
            if prompts.dim() == 3:  # a context shared by all classes
                prompts = prompts.unsqueeze(1)
            cosine = torch.einsum("bd,bcd->bc", normalize(part, dim=-1), self.text(prompts))
            rows.append(self.logit_scale * cosine)
        return torch.cat(rows)
