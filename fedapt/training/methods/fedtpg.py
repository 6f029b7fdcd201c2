"""FedTPG: a shared network computes the context from the names of the classes.

    T       = unit text features of "a photo of a {name}.", frozen, [C, D]
    x       = q + softmax(q (T Wk')' / sqrt(W)) T Wv'          cross-attention of M learned queries
    V       = x + W2 gelu(W1 norm(x) + b1) + b2                 one context for all classes, [M, W]
    logits  = exp(s) f^ . t(V);   loss = CE(logits, class)

The learned tensors do not depend on the classes, so clients may have different ones. The paper uses
four attention heads, and this method one. Wv and W2 start small, so that V starts at the size of
the text tower's own tokens.

Source: FedTPG (arXiv 2310.06123).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from fedapt.core.seeds import child_seed
from fedapt.data.partition import Client
from fedapt.model.prompt import CONTEXT_STD
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    text_logits,
)
from fedapt.training.methods.fedclip import draw_linear
from fedapt.training.methods.promptfl import context_loss, fuse_context

QUERIES, KEYS, VALUES = "queries", "attention.keys", "attention.values"
HIDDEN, OUT = "mlp.0", "mlp.1"


class FedTPG(Method):
    """Learned: q float32 [M, W], Wk and Wv [W, D], W1 [W, W], b1, W2 [W, W], b2."""

    title = "FedTPG"
    source = "arXiv 2310.06123"

    def begin(self) -> Learned:
        """Initial q as a context, matrices as torch's Linear, and small Wv and W2."""
        s = self.setting
        width, joint = s.backbone.text_tower.width, s.backbone.joint_width
        generator = torch.Generator().manual_seed(child_seed(s.config.train.seed, "fedtpg"))
        length = s.config.prompt.context_length
        learned = {QUERIES: CONTEXT_STD * torch.randn(length, width, generator=generator)}
        for name in (KEYS, VALUES):
            bound = 1 / math.sqrt(joint)
            learned[name] = bound * (2 * torch.rand(width, joint, generator=generator) - 1)
        learned |= draw_linear(HIDDEN, width, width, generator)
        learned |= draw_linear(OUT, width, width, generator)
        for name in (VALUES, f"{OUT}.weight", f"{OUT}.bias"):
            learned[name] = CONTEXT_STD * learned[name]
        return {name: tensor.to(s.backbone.device) for name, tensor in learned.items()}

    def context(self, learned: Learned) -> Tensor:
        """V, float32 [M, W]."""
        text, queries = self.setting.zero_shot, learned[QUERIES]
        keys, values = text @ learned[KEYS].T, text @ learned[VALUES].T
        attention = (queries @ keys.T / math.sqrt(queries.shape[-1])).softmax(-1)
        x = queries + attention @ values
        normed = layer_norm(x, x.shape[-1:])
        hidden = gelu(linear(normed, learned[f"{HIDDEN}.weight"], learned[f"{HIDDEN}.bias"]))
        return x + linear(hidden, learned[f"{OUT}.weight"], learned[f"{OUT}.bias"])

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""
        return lambda learned, batch: context_loss(self.setting, self.context(learned), batch)

    def predictor(self, learned: Learned) -> Predictor:
        """The logits of the context that the network computes."""
        with torch.inference_mode():
            text = self.setting.text(self.context(learned))
        return lambda images, domain: text_logits(self.setting, images.features, text)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """One bank of text features."""
        with torch.inference_mode():
            context = self.context(learned)
        return fuse_context(self.setting, context, ALL_DOMAINS)
