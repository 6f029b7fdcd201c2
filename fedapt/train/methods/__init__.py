"""The federated methods, one a file, behind one interface (`base.Method`)."""

from __future__ import annotations

from fedapt.train.methods.adapt import Adapt
from fedapt.train.methods.base import Learned, Method, Objective, Predictor, Setting
from fedapt.train.methods.cocoop import CoCoOp
from fedapt.train.methods.fedapt import FedAPT
from fedapt.train.methods.fedclip import FedCLIP
from fedapt.train.methods.full import FullFineTuning
from fedapt.train.methods.linear_probe import LinearProbe
from fedapt.train.methods.local import Local
from fedapt.train.methods.promptfl import PromptFL
from fedapt.train.methods.unsupervised import UnsupervisedFedAPT
from fedapt.train.methods.zero_shot import ZeroShot

# `core.config.METHODS` has the same names, without torch
METHODS: dict[str, type[Method]] = {
    "fedapt": FedAPT,
    "fedapt-unsupervised": UnsupervisedFedAPT,
    "zero-shot": ZeroShot,
    "local": Local,
    "promptfl": PromptFL,
    "adapt": Adapt,
    "cocoop": CoCoOp,
    "fedclip": FedCLIP,
    "linear-probe": LinearProbe,
    "full": FullFineTuning,
}

__all__ = ["METHODS", "Learned", "Method", "Objective", "Predictor", "Setting"]
