"""Which aggregate a run's settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from fedapt.core.errors import ConfigError
from fedapt.federation.flower import require_flower
from fedapt.train.aggregate import Aggregation, Average
from fedapt.train.methods import Method


def choose_aggregation(method: Method) -> Callable[[], Aggregation]:
    """What begins a round's aggregate: the mean, or one of Flower's.

    Raises:
        ConfigError: noise that nothing bounds, or that would not hide what it should.
        DependencyError: Flower, or its accountant, is not installed.
    """
    config, weighting = method.setting.config.federation, method.setting.config.train.weighting
    if config.aggregation == "mean" and not config.clip and not config.noise:
        return lambda: Average(weighting)
    if config.noise:
        is_plain = config.aggregation == "mean" and weighting == "uniform" and not method.owned
        if not config.clip or not is_plain:
            raise ConfigError(
                where=f"federation.noise = {config.noise:g}",
                found=f"clip = {config.clip:g}, aggregation = {config.aggregation!r},"
                f" weighting = {weighting!r}, method {method.title}",
                expected="a clip above 0, the uniform mean, and a method whose clients share all",
                next_step="set federation.clip, and leave the others at their defaults",
            )
        require_flower("dp_accounting")
    require_flower()
    from fedapt.federation.flower.robust import Robust

    return lambda: Robust(config, weighting, len(method.setting.clients))
