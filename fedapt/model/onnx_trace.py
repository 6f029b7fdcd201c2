"""Trace a torch module to ONNX, with a dynamic batch axis and nothing else dynamic."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import Tensor, nn

from fedapt.core.errors import ExportError

# 20: has Gelu and LayerNormalization as operators of their own, and every backend reads it
OPSET = 20
IR_VERSION = 10  # of ONNX 1.16: the onnx package writes newer ones than runtimes can read
BATCH = "batch"


def trace_to_onnx(
    module: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str]
) -> onnx.ModelProto:
    """Export a module of one input whose leading axis, and that of every output, is the batch.

    Args:
        module: in evaluation mode.
        example: an input with a batch of at least 2, since torch specialises a size of 1.

    Raises:
        ExportError: the module cannot be traced.
    """
    batch = torch.export.Dim(BATCH, min=1, max=1 << 16)
    try:
        # the exporter reports its steps on stdout and through warnings meant for its authors
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            _quiet("torch.onnx", "onnxscript", "onnx_ir"),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises a dozen private kinds
        reason = " ".join(str(error).split())[:400]
        raise ExportError(
            where=type(module).__name__,
            found=f"{type(error).__name__}: {reason}",
            expected="a module that torch.onnx.export can trace",
            next_step="report this with the model's name; ViT, ResNet and lite are known to work",
        ) from error
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    model = program.model_proto
    model.ir_version = IR_VERSION
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    # traces of Python source, which name paths of the machine that exported
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
