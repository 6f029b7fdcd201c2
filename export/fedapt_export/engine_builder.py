"""The child process that builds an engine: settings as JSON on stdin, the result on stdout.

Run as `python -m fedapt_export.engine_builder` by `engine.build_engine`. It imports nothing of
torch: the builder has the process, and its memory, for itself. The same lines serve TensorRT 10 and
11 and TensorRT-RTX: what a version lacks is not asked for.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.tensorrt import MODULES

_NAMES = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
_OLDEST_TENSORRT = 10


class BuildError(Exception):
    """The parser or the builder said no."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build and write one engine.

    Raises:
        BuildError: with the library's own words.
    """
    flavour = request["flavour"]
    trt: Any = importlib.import_module(MODULES[flavour])
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) < _OLDEST_TENSORRT:
        raise BuildError(f"TensorRT {trt.__version__}; {_OLDEST_TENSORRT} or newer is needed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # strong typing is the only mode of RTX and of TensorRT 11: the graph's dtypes are the engine's
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BuildError("; ".join(errors) or "the parser refused the graph")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 in the graph means float32
    if request["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    profile = builder.create_optimization_profile()
    images = network.get_input(0)
    sizes = [request[f"{name}_batch"] for name in ("least", "best", "most")]
    profile.set_shape(images.name, *[(size, *tuple(images.shape)[1:]) for size in sizes])
    config.add_optimization_profile(profile)
    for i, name in enumerate(request["capabilities"]):
        config.num_compute_capabilities = len(request["capabilities"])
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)
    cache = _attach_timing_cache(config, request["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("the builder returned no engine")
    Path(request["out"]).write_bytes(memoryview(plan))
    if cache is not None:
        _write_whole(Path(request["timing_cache"]), config.get_timing_cache().serialize())
    return {"library": _NAMES[flavour], "version": trt.__version__}


def _attach_timing_cache(config: Any, path: str) -> Any:
    """The timings of earlier builds; those of another GPU or version are refused by TensorRT."""
    if not path:
        return None
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BuildError(f"{path} is a timing cache of another GPU or version; name another file")
    return cache


def _write_whole(path: Path, data: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(memoryview(data))
    os.replace(temporary, path)


def main() -> int:
    """Read the request, build, and print the result as the last line of stdout."""
    try:
        result = build(json.loads(sys.stdin.read()))
    except (BuildError, OSError, ImportError, AttributeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
