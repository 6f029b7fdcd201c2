"""The building half of `tensorrt_library`: what a builder takes, and what it refuses.

`Builder.fails` names what fails; `tests/packaging/test_bindings.py` compares every name and
parameter here with those of NVIDIA's bindings.
"""

# ruff: noqa: A002  NVIDIA's own names
from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from tests.support.tensorrt_library import FakePlan, ILogger


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    REFIT = 4
    TF32 = 7


class Logger(ILogger):
    def __init__(self, min_severity: ILogger.Severity = ILogger.WARNING) -> None: ...


class ITensor:
    name = "images"
    shape = (-1, 2, 2, 3)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.is_strongly_typed = bool(flags >> NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1)
        self.is_parsed = False

    def get_input(self, index: int) -> ITensor | None:
        return ITensor() if self.is_parsed and index == 0 else None


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, [""][:0]

    def parse_from_file(self, model: str) -> bool:
        self._network.is_parsed = Path(model).read_bytes().startswith(b"graph")
        if not self._network.is_parsed:
            self._errors = ["In node 3: no importer registered for op: Strange"]
        return self._network.is_parsed

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None:
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data or b"timings"


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        batches = [shape[0] for shape in profile.shapes["images"]]
        if batches != sorted(batches):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        damaged = serialized_timing_cache.startswith(b"damaged")
        return None if damaged else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not isinstance(cache, ITimingCache):
            raise TypeError("set_timing_cache(): incompatible function arguments")
        self._cache = cache
        return ignore_mismatch or not cache.data.startswith(b"another GPU")

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    """Attributes: `fails`, the names of methods that return nothing, and `Builder` itself."""

    fails: tuple[str, ...] = ()

    def __init__(self, logger: ILogger) -> None:
        if "Builder" in self.fails:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def _give(self, name: str, given: Any) -> Any:
        return None if name in self.fails else given

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        given: INetworkDefinition | None = self._give("create_network", INetworkDefinition(flags))
        return given

    def create_builder_config(self) -> IBuilderConfig | None:
        given: IBuilderConfig | None = self._give("create_builder_config", IBuilderConfig())
        return given

    def create_optimization_profile(self) -> IOptimizationProfile | None:
        profile: IOptimizationProfile | None
        profile = self._give("create_optimization_profile", IOptimizationProfile())
        return profile

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        assert network.is_strongly_typed, "the graph's dtypes are not the engine's"
        assert BuilderFlag.TF32 not in config.flags, "float32 is not float32"
        low, middle, high = (shape[0] for shape in config.profiles[0].shapes["images"])
        plan = FakePlan(min_batch=low, opt_batch=middle, max_batch=high).to_bytes()
        given: bytes | None = self._give("build_serialized_network", plan)
        return given
