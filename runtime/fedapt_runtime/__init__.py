"""Classify images with a fused fedapt model: no torch, no fedapt, no text encoder.

Examples:
    from fedapt_runtime import Classifier

    classifier = Classifier.load("model.onnx")
    for prediction in classifier(["a.jpg", "b.png"]):
        print(prediction.path, prediction.label, prediction.score, prediction.routed_to)
"""

import os

from fedapt_runtime.classifier import Classifier
from fedapt_runtime.errors import ReportedError, RuntimeFailure
from fedapt_runtime.manifest import Manifest
from fedapt_runtime.prediction import Prediction
from fedapt_runtime.preprocess import Preprocessing

__version__ = "0.1.0"

# ONNX Runtime reads this variable at its import. Since 1.31 it otherwise stores an id of the device
# and events in the home folder, and sends them to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = [
    "Classifier",
    "Manifest",
    "Prediction",
    "Preprocessing",
    "ReportedError",
    "RuntimeFailure",
    "__version__",
]
