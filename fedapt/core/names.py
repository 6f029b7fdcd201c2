"""Names that several packages share, each defined here only. This module does not import torch."""

from __future__ import annotations

from pathlib import PurePath

# federated methods: name -> module and class, each in a file of its own
METHODS = {
    "fedapt": "fedapt.training.methods.fedapt:FedAPT",
    "fedapt-unsupervised": "fedapt.training.methods.unsupervised:UnsupervisedFedAPT",
    "zero-shot": "fedapt.training.methods.zero_shot:ZeroShot",
    "local": "fedapt.training.methods.local:Local",
    "promptfl": "fedapt.training.methods.promptfl:PromptFL",
    "adapt": "fedapt.training.methods.adapt:Adapt",
    "diprompt": "fedapt.training.methods.diprompt:DiPrompt",
    "fedtpg": "fedapt.training.methods.fedtpg:FedTPG",
    "cocoop": "fedapt.training.methods.cocoop:CoCoOp",
    "fedclip": "fedapt.training.methods.fedclip:FedCLIP",
    "linear-probe": "fedapt.training.methods.linear_probe:LinearProbe",
    "analytic": "fedapt.training.methods.analytic:Analytic",
    "adaptive-analytic": "fedapt.training.methods.analytic:AdaptiveAnalytic",
    "full": "fedapt.training.methods.full:FullFineTuning",
}
# methods with FedAPT's global model; exact personalised prompts exist for comparison
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
