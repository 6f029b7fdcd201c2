"""Names that several parts must agree on, each known here alone; no torch is imported."""

from __future__ import annotations

from pathlib import PurePath

# federated methods: name -> module and class, each in a file of its own
METHODS = {
    "fedapt": "fedapt.train.methods.fedapt:FedAPT",
    "fedapt-unsupervised": "fedapt.train.methods.unsupervised:UnsupervisedFedAPT",
    "zero-shot": "fedapt.train.methods.zero_shot:ZeroShot",
    "local": "fedapt.train.methods.local:Local",
    "promptfl": "fedapt.train.methods.promptfl:PromptFL",
    "adapt": "fedapt.train.methods.adapt:Adapt",
    "cocoop": "fedapt.train.methods.cocoop:CoCoOp",
    "fedclip": "fedapt.train.methods.fedclip:FedCLIP",
    "linear-probe": "fedapt.train.methods.linear_probe:LinearProbe",
    "analytic": "fedapt.train.methods.analytic:Analytic",
    "adaptive-analytic": "fedapt.train.methods.analytic:AdaptiveAnalytic",
    "full": "fedapt.train.methods.full:FullFineTuning",
}
# those whose global model is FedAPT's, with prompts of each image's own to compare with
FUSED_METHODS = ("fedapt", "fedapt-unsupervised")

# tensors of FedAPT, in checkpoints and in messages
META_PROMPT = "meta_prompt"
ADAPTIVE_NETWORK = "adaptive_network"
KEYS = "keys"

_HUB = "hf-hub:"
_WEIGHTS = (".bin", ".ckpt", ".npz", ".pt", ".pth", ".safetensors")


def is_path(name: str) -> bool:
    """Whether the name of a CLIP or of its weights is a path, which must not leave the machine.

    `hf-hub:organisation/repository` is a name.
    """
    if name.startswith(_HUB):
        return False
    return "/" in name or "\\" in name or PurePath(name).suffix.lower() in _WEIGHTS
