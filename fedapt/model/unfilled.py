"""Models built without initial values, whose parameters become the tensors of a weights file.

A model that is built and then loaded holds its weights twice, and computes random values that are
overwritten: 15 seconds and 1.6 GB of ViT-L/14. Here parameters have no memory until weights are
copied into them; then they become those weights. Tensors of a safetensors file stay mapped from it.

Source: PyTorch, `torch.overrides.TorchFunctionMode`, "Meta device" and
`torch.nn.modules.module.register_module_parameter_registration_hook`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils import swap_tensors


class Unfilled(TorchFunctionMode):
    """Inside, new parameters have no values, and a copy into one makes it the copied tensor.

    Buffers are built as usual, because some are computed and in no file.
    """

    def __enter__(self) -> Self:
        """See `TorchFunctionMode`."""
        self._stack = ExitStack()
        self._stack.enter_context(warnings.catch_warnings())
        # torch expects its own copy to do nothing
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)
        # torch's types say that the hook returns None; its documentation says a parameter or None
        hook = cast("Callable[..., None]", _empty)
        self._stack.callback(register_module_parameter_registration_hook(hook).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """See `TorchFunctionMode`."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        target = args[0] if args else None
        if isinstance(target, Tensor) and target.is_meta:
            if function is Tensor.to:  # without values, nothing is moved
                return target
            if function is Tensor.copy_ and isinstance(target, nn.Parameter):
                return _replace(target, args[1])
        return function(*args, **(kwargs or {}))


def is_filled(model: nn.Module) -> bool:
    """Whether every parameter and buffer of the model has values.

    A buffer has none where the model computes it on the device of a parameter (Swin's masks).
    """
    return not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def _replace(target: nn.Parameter, source: Tensor) -> nn.Parameter:
    values = source.detach().to(target.dtype).contiguous()
    swap_tensors(target, nn.Parameter(values, target.requires_grad))  # type: ignore[no-untyped-call]
    return target
