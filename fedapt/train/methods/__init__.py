"""The federated methods, one a file, behind one interface (`base.Method`)."""

from __future__ import annotations

from pkgutil import resolve_name

from fedapt.core import names
from fedapt.train.methods.base import Learned, Method, Objective, Predictor, Setting

METHODS: dict[str, type[Method]] = {
    name: resolve_name(place) for name, place in names.METHODS.items()
}

__all__ = ["METHODS", "Learned", "Method", "Objective", "Predictor", "Setting"]
