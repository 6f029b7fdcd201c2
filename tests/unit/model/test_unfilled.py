"""Models whose parameters become the tensors of a weights file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedapt.model.unfilled import Unfilled, is_filled


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.place = nn.Parameter(torch.empty(5))
        nn.init.trunc_normal_(self.place, std=0.02)
        self.register_buffer("mask", torch.full((2, 2), 7.0).triu_(1))

    mask: Tensor


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(Small().state_dict(), path)
    return path


def test_parameters_are_the_tensors_of_the_file(weights: Path) -> None:
    state = load_file(weights)
    with Unfilled():
        model = Small()
        model.load_state_dict(state)
    assert is_filled(model)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr()
        assert type(parameter) is nn.Parameter
    assert model.mask.tolist() == [[0, 7], [0, 0]]


def test_a_tensor_of_another_dtype_is_converted(weights: Path) -> None:
    state = {name: tensor.double() for name, tensor in load_file(weights).items()}
    with Unfilled():
        model = Small()
        model.load_state_dict(state)
    assert is_filled(model)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.double(), state[name])


def test_a_tensor_of_another_shape_is_refused(weights: Path) -> None:
    state = load_file(weights) | {"place": torch.zeros(6)}
    with Unfilled(), pytest.raises(RuntimeError, match="size mismatch for place"):
        Small().load_state_dict(state)


def test_a_missing_parameter_is_noticed(weights: Path) -> None:
    state = load_file(weights)
    del state["place"]
    with Unfilled():
        model = Small()
        model.load_state_dict(state, strict=False)
    assert not is_filled(model)


def test_no_random_number_is_drawn_inside_and_every_one_outside() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with Unfilled():
        Small()
    assert torch.equal(torch.get_rng_state(), before)
    assert is_filled(Small())
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_model_of_a_file_can_be_trained_and_the_file_stays(weights: Path) -> None:
    before = weights.read_bytes()
    with Unfilled():
        model = Small()
        model.load_state_dict(load_file(weights))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    model.norm(model.linear(torch.ones(2, 4))).square().sum().backward()
    known = model.linear.bias.detach().clone()
    optimiser.step()
    assert not torch.equal(model.linear.bias, known)
    assert weights.read_bytes() == before
