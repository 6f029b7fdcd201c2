"""The child process that builds an engine: settings as JSON on stdin, the result on stdout.

`engine.build_engine` runs it as `python -m fedapt_export.engine_builder`. It does not import torch,
which leaves more memory to the builder. The same code serves TensorRT 10, TensorRT 11 and
TensorRT-RTX; each option is used only with a library that has it.

Source: TensorRT documentation, "Python API", the return values of failed calls.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from fedapt_runtime.backends.engine_plan import MODULES

_NAMES = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
_MIN_TENSORRT = 10
_T = TypeVar("_T")


class BuildError(Exception):
    """The parser or the builder has failed."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build and write one engine.

    Args:
        request: the fields of `EngineSettings`, with `flavour` resolved, and `model` and `out`.

    Returns:
        `library` and `version` of the builder.

    Raises:
        BuildError: a step failed; the text contains the library's message if there is one.
    """
    flavour = request["flavour"]
    trt: Any = importlib.import_module(MODULES[flavour])
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) < _MIN_TENSORRT:
        raise BuildError(f"TensorRT {trt.__version__}; {_MIN_TENSORRT} or newer is needed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = _create(trt.Builder, logger)
    # strong typing, the only mode of RTX and TensorRT 11: the engine has the graph's dtypes
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _need(builder.create_network(strongly_typed), "no network")
    parser = _create(trt.OnnxParser, network, logger)
    if not parser.parse_from_file(request["model"]):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BuildError("; ".join(errors) or "the parser refused the graph")
    config = _need(builder.create_builder_config(), "no configuration")
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 must stay float32
    if request["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    profile = _need(builder.create_optimization_profile(), "no optimisation profile")
    images = _need(network.get_input(0), "a graph without inputs")
    sizes = [request[f"{name}_batch"] for name in ("min", "opt", "max")]
    profile.set_shape(images.name, *[(size, *tuple(images.shape)[1:]) for size in sizes])
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"batches of {sizes} are refused for images of {tuple(images.shape)[1:]}")
    for i, name in enumerate(request["capabilities"]):
        config.num_compute_capabilities = len(request["capabilities"])
        target = getattr(trt.ComputeCapability, name.upper())
        if config.set_compute_capability(target, i) is False:
            raise BuildError(f"{name} is refused as a target")
    if request["timing_cache"]:
        _attach_timing_cache(config, Path(request["timing_cache"]))
    plan = _need(builder.build_serialized_network(network, config), "no engine")
    Path(request["out"]).write_bytes(memoryview(plan))
    if request["timing_cache"]:
        timings = _need(config.get_timing_cache(), "no timing cache").serialize()
        _replace_file(Path(request["timing_cache"]), _need(timings, "an unreadable timing cache"))
    return {"library": _NAMES[flavour], "version": trt.__version__}


def _create(kind: Any, *arguments: Any) -> Any:
    """An object of the library; its constructors raise TypeError on failure."""
    try:
        return kind(*arguments)
    except TypeError as error:
        raise BuildError(f"the library created no {kind.__name__}; check the GPU") from error


def _need(given: _T | None, instead: str) -> _T:
    """The library's result; raises an error if it is None."""
    if given is None:
        raise BuildError(f"the library gave {instead}")
    return given


def _attach_timing_cache(config: Any, path: Path) -> None:
    """Use the timings of earlier builds; TensorRT refuses those of another GPU or version."""
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None:
        raise BuildError(f"{path} is a damaged timing cache; remove it")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BuildError(
            f"{path} is a damaged timing cache, or one of another GPU or version; remove it, or"
            " name another file"
        )


def _replace_file(path: Path, data: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(memoryview(data))
    os.replace(temporary, path)


def main() -> int:
    """Read the request, build, and print the result as the last line of stdout."""
    try:
        result = build(json.loads(sys.stdin.read()))
    except Exception as error:  # the bindings' exceptions have no common base class
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
