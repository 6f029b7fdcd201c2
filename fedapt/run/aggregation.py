"""Checks for settings of aggregation and privacy that exclude each other."""

from __future__ import annotations

from fedapt.core.config import Config, FederationConfig
from fedapt.core.errors import ConfigError
from fedapt.federation.flower import require_flower
from fedapt.training.methods import METHODS, Method
from fedapt.training.robust import count_needed
from fedapt.training.sampling import sample_clients

# a Gaussian exceeds this once in 10^15 draws
_WIDTHS = 8


def check_aggregation(method: Method) -> None:
    """Refuse an aggregation that would not give the requested protection.

    Raises:
        ConfigError: noise without a bound on updates, or too few clients to outvote a faulty one.
        DependencyError: the accountant is not installed.
    """
    config, train = method.setting.config.federation, method.setting.config.train
    shares_all = train.weighting == "uniform" and not method.owned
    if method.adds_up and (config.aggregation != "mean" or (config.clip and method.owned)):
        raise _exclude(
            f"federation.aggregation = {config.aggregation!r}, clip = {config.clip:g}",
            f"the method {method.title}, whose clients send sums",
            "the mean, and no clip on sums of single domains",
            "remove these settings; the method analytic accepts a clip",
        )
    if config.noise:
        if not config.clip or not shares_all or config.aggregation != "mean":
            raise ConfigError(
                where=f"federation.noise = {config.noise:g}",
                found=f"clip = {config.clip:g}, aggregation = {config.aggregation!r},"
                f" weighting = {train.weighting!r}, method {method.title}",
                expected="a clip above 0, the uniform mean, and a method with shared values only",
                next_step="set federation.clip, and leave the others at their defaults",
            )
        require_flower("dp_accounting")
    if config.aggregation == "mean":
        return
    where = f"federation.aggregation = {config.aggregation!r}"
    if not shares_all:
        raise _exclude(
            where,
            f"weighting = {train.weighting!r}, method {method.title}",
            "uniform weights, and a method with shared values only",
            "remove train.weighting, or use the mean, which tolerates no faulty reply",
        )
    clients = sample_clients(method.setting.clients, config, train.seed, 0)
    if needed := count_needed(config, len(clients)):
        raise _exclude(
            where,
            f"{len(clients)} clients in a round",
            f"{needed} or more, to outvote federation.faulty = {config.faulty}",
            "sample more clients, or use the mean, which tolerates no faulty reply",
        )


def check_privacy(config: Config, *, local: bool) -> None:
    """Refuse a secure sum, or noise of nodes, that would not give the requested privacy.

    Args:
        local: whether this process trains all clients, so that updates need no protection.

    Raises:
        ConfigError: settings that exclude each other, or a method that shows a client's own values.
        DependencyError: Flower's accountant is not installed.
    """
    federation, default = config.federation, FederationConfig()
    hides = federation.secure or federation.node_clip or federation.node_noise
    if not hides:
        return
    if local:
        raise _exclude(
            "federation.secure, node_clip, node_noise",
            "clients in this process",
            "clients on nodes",
            "train with `engine` flower or `fedapt federation`",
        )
    if federation.secure:
        method = METHODS[config.train.method]
        if method.owned:
            raise _exclude(
                "federation.secure",
                f"the method {config.train.method}, whose {', '.join(method.owned)} belong to one"
                " domain each",
                "a method with shared values only",
                "train another method, such as fedapt",
            )
        for name in ("aggregation", "clip", "noise", "max_update"):
            if (value := getattr(federation, name)) != getattr(default, name):
                raise _exclude(
                    "federation.secure",
                    f"{name} = {value!r}, for which the server has to see every single update",
                    f"{getattr(default, name)!r}",
                    "leave it out; federation.node_clip shortens updates at the nodes",
                )
    if federation.node_noise:
        if not federation.node_clip or federation.noise or federation.clip:
            raise _exclude(
                f"federation.node_noise = {federation.node_noise:g}",
                f"node_clip = {federation.node_clip:g}, clip = {federation.clip:g},"
                f" noise = {federation.noise:g}",
                "a node_clip above 0, and no clip or noise of the server's",
                "set federation.node_clip, and leave clip and noise at 0",
            )
        if federation.secure and config.train.weighting != "uniform":
            raise _exclude(
                f"federation.node_noise = {federation.node_noise:g}",
                f"weighting = {config.train.weighting!r} in a secure sum",
                "uniform: each update counts once",
                "leave train.weighting at its default",
            )
        widest = federation.node_clip * (1 + _WIDTHS * federation.node_noise)
        if federation.secure and widest > federation.secure_range:
            raise _exclude(
                f"federation.secure_range = {federation.secure_range:g}",
                f"noise of width {federation.node_clip * federation.node_noise:g}, whose"
                " tail this range cuts off",
                f"{widest:g} or more",
                "raise federation.secure_range",
            )
        require_flower("dp_accounting")


def _exclude(where: str, found: str, expected: str, next_step: str) -> ConfigError:
    return ConfigError(where=where, found=found, expected=expected, next_step=next_step)
