"""`fedapt.train(...)` and `fedapt.compare(...)`, whose names are packages' too.

Python binds an imported subpackage to its name in the parent, over any function of that name. So
the two packages can be called: whichever of the two a name gives, it works.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that passes calls to the function of its name in `fedapt.api`."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        """See `fedapt.api`."""
        from importlib import import_module

        return getattr(import_module("fedapt.api"), self.__name__.rpartition(".")[2])(
            *args, **named
        )


def make_callable(package: str) -> None:
    """Let a package of this process be called."""
    sys.modules[package].__class__ = CallablePackage
