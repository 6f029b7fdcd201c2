"""Methods side by side: the same images, splits, seeds and budget for all."""

from fedapt.core.callable_package import make_callable

make_callable(__name__)
