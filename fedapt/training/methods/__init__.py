"""The federated methods, one per file, with one interface (`base.Method`)."""

from __future__ import annotations

from pkgutil import resolve_name

from fedapt.core import names
from fedapt.core.errors import UsageError
from fedapt.training.methods.base import Learned, Method, Objective, Predictor, Setting

METHODS: dict[str, type[Method]] = {
    name: resolve_name(place) for name, place in names.METHODS.items()
}

__all__ = [
    "METHODS",
    "Learned",
    "Method",
    "Objective",
    "Predictor",
    "Setting",
    "register_method",
]


def register_method(name: str, method: type[Method]) -> None:
    """Register a method as `train.method = NAME` in this process.

    A process can read checkpoints of the method only after the registration.

    Raises:
        UsageError: the name is taken.

    Examples:
        >>> from fedapt.training.methods.linear_probe import LinearProbe
        >>> class Probe(LinearProbe):
        ...     title = "another probe"
        >>> fedapt.register_method("another-probe", Probe)
        >>> run = fedapt.train("images", "probe", method="another-probe", model="./clip", rounds=1)
        >>> run.evaluation.title
        'another probe'
    """
    if name in METHODS:
        raise UsageError(
            where=f"the method {name!r}",
            found="an existing method of this name",
            expected="a new name",
            next_step="choose another name",
        )
    METHODS[name] = method
    names.METHODS[name] = f"{method.__module__}:{method.__qualname__}"
