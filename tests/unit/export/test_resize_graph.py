"""The runtime's files are what this version of the code builds."""

from __future__ import annotations

import onnx
import pytest

from fedapt_export.resize_graph import INTERPOLATIONS, build_resize_graph, graph_path


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_runtimes_graph_is_the_one_that_is_built(interpolation: str) -> None:
    assert onnx.load(graph_path(interpolation)) == build_resize_graph(interpolation)
