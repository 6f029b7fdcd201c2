"""The child process that builds an engine: settings as JSON on stdin, the result on stdout.

Run as `python -m fedapt_export.engine_builder` by `engine.build_engine`. It imports nothing of
torch: the builder has the process, and its memory, for itself.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

LIBRARY = "tensorrt_rtx_bindings"


class BuildError(Exception):
    """The parser or the builder said no."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build and write one engine.

    Raises:
        BuildError: with the library's own words.
    """
    trt: Any = importlib.import_module(LIBRARY)
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
    profile = builder.create_optimization_profile()
    images = network.get_input(0)
    sizes = [request[f"{name}_batch"] for name in ("least", "best", "most")]
    profile.set_shape(images.name, *[(size, *tuple(images.shape)[1:]) for size in sizes])
    config.add_optimization_profile(profile)
    targets = request["capabilities"]
    if targets:
        config.num_compute_capabilities = len(targets)
        for i, name in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("the builder returned no engine")
    Path(request["out"]).write_bytes(memoryview(plan))
    return {"version": trt.__version__}


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
