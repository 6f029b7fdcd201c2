"""Federated adaptive prompt tuning of CLIP, from training to a deployed classifier.

Examples:
    >>> run = fedapt.train("images", out="new", model="./clip", rounds=1, context_length=4)
    >>> delivered = run.export("model.onnx")
    >>> classifier = fedapt.Classifier.load("model.onnx")
    >>> (prediction,) = classifier(["images/photo/stripes/000.png"])
    >>> prediction.routed_to in ("photo", "sketch")
    True

Names are imported when they are first used: `import fedapt` alone loads neither torch nor any other
heavy package.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> where it is, as `pkgutil.resolve_name` reads it
_PLACES = {
    "Classifier": "fedapt_runtime:Classifier",
    "Config": "fedapt.core.config:Config",
    "Method": "fedapt.training.methods:Method",
    "Reporter": "fedapt.core.report:Reporter",
    "Run": "fedapt.trained:Run",
    "compare": "fedapt.api:compare",
    "errors": "fedapt.core.errors:",
    "load": "fedapt.api:load",
    "register_method": "fedapt.training.methods:register_method",
    "train": "fedapt.api:train",
}

__all__ = [
    "Classifier",
    "Config",
    "Method",
    "Reporter",
    "Run",
    "__version__",
    "compare",
    "errors",
    "load",
    "register_method",
    "train",
]

if TYPE_CHECKING:
    from fedapt.api import compare, load, train
    from fedapt.core import errors
    from fedapt.core.config import Config
    from fedapt.core.report import Reporter
    from fedapt.trained import Run
    from fedapt.training.methods import Method, register_method
    from fedapt_runtime import Classifier


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    if name in _PLACES:
        return resolve_name(_PLACES[name])
    raise AttributeError(f"module 'fedapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
