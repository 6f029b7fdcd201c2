"""Trace a torch module to ONNX; only the batch axis is dynamic."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from fedapt.core.errors import ExportError

# opset 20 has Gelu and LayerNormalization as operators, and every backend reads it
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
                custom_translation_table={
                    torch.ops.aten.scaled_dot_product_attention.default: _attention
                },
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
    # stack traces of Python source, which contain paths of this machine
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(s q k') v as five operators; torch's own translation computes shapes at run time.

    The scale multiplies q before the product, where TensorRT expects it.
    """
    from onnxscript import opset20 as op

    if is_causal or enable_gqa or dropout_p:
        raise ValueError("attention that is causal, grouped or drops out, in an image tower")
    factor = scale if scale is not None else query.shape[-1] ** -0.5
    keys = op.Transpose(key, perm=[0, 1, 3, 2])
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=factor)), keys)
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def follow_input(graph: onnx.GraphProto, operators: Sequence[str]) -> list[onnx.NodeProto] | None:
    """The chain of these operators from the input; each is the only reader of its input.

    A `Shape` node on the input is not counted as a reader: it reads only the batch size.
    """
    readers = [n for n in graph.node if graph.input[0].name in n.input and n.op_type != "Shape"]
    if len(readers) != 1 or readers[0].op_type != operators[0]:
        return None
    path = readers
    for operator in operators[1:]:
        node = find_only_reader(graph, path[-1].output[0], operator)
        if node is None:
            return None
        path.append(node)
    return path


def find_only_reader(
    graph: onnx.GraphProto, name: str, operator: str | None = None
) -> onnx.NodeProto | None:
    """The only node that reads a value, if it is this operator."""
    readers: list[onnx.NodeProto] = [node for node in graph.node if name in node.input]
    if len(readers) != 1 or (operator is not None and readers[0].op_type != operator):
        return None
    return readers[0]


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Remove, in place, the initialisers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


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
