"""The ClientApp: Flower's messages -> `Node` -> replies.

A reply to a training task holds the learned tensors, the number of images and the loss. A reply to
an evaluation task holds accuracies and numbers of images. In a secure round, tensors, number of
images and loss are masked (`federation.flower.secure`). A reply never holds an image, a feature, a
path or a count per class. An error is sent with the message of the check that raised it; if the
message could name a file, only the kind of the error is sent. The node's own log has the full text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedapt
from fedapt.core.errors import FederationError, ReportedError, UsageError
from fedapt.core.report import Reporter
from fedapt.federation.flower.node import Node, Party
from fedapt.federation.flower.secure.client import add_stages
from fedapt.federation.flower.task import (
    LEARNED,
    PROTOCOL,
    REFUSAL,
    REPLY,
    TASK,
    check_protocol,
    read_plan,
    unpack,
)
from fedapt.federation.flower.tensors import to_arrays

# (message, context) -> the node that answers: this process's, or a simulated one
FindNode = Callable[[ConfigRecord, Context], Node]


def build_client_app(find_node: FindNode, reporter: Reporter | None = None) -> ClientApp:
    """The app that every node runs.

    Args:
        reporter: receives events that need the operator's attention.
    """
    app, reporter = ClientApp(), reporter or Reporter()

    def answer(message: Message, context: Context, work: Callable[[Node], RecordDict]) -> Message:
        records = message.content.config_records
        if REFUSAL in records:  # the server has refused this node
            reason = str(records[REFUSAL].get("reason"))
            reporter.event("error", f"turned away: {reason}")
            return Message(RecordDict(), reply_to=message)
        try:
            task = records[TASK]
            check_protocol(task)
            return Message(work(find_node(task, context)), reply_to=message)
        except ReportedError as error:
            reporter.event("error", str(error))
            return Message(RecordDict({REFUSAL: _tell(error)}), reply_to=message)

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        """Load CLIP and images for the run, and reply with the node's name and domain."""

        def work(node: Node) -> RecordDict:
            node.look_up(read_plan(message.content.config_records[TASK]))
            party = node.party
            name = party.name or party.domain
            return RecordDict({REPLY: ConfigRecord({"domain": party.domain, "name": name})})

        return answer(message, context, work)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """One client's round."""

        def work(node: Node) -> RecordDict:
            plan, place, share, keys = unpack(message.content, node.device)
            if plan.config.federation.secure:
                raise FederationError(
                    where="the server's message",
                    shareable=True,
                    found="a round without secure aggregation",
                    expected="a secure round (federation.secure)",
                    next_step="this node sends no data in this round; ask the server's operator",
                )
            update = node.train(plan, place, share, keys)
            return RecordDict(
                {
                    LEARNED: to_arrays(update.learned),
                    REPLY: MetricRecord({"images": update.n_samples, "loss": update.loss}),
                }
            )

        return answer(message, context, work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Accuracy of the global model on this node's images."""

        def work(node: Node) -> RecordDict:
            score = node.evaluate(*unpack(message.content, node.device))
            return RecordDict({REPLY: MetricRecord(dataclasses.asdict(score))})

        return answer(message, context, work)

    add_stages(app, answer)
    return app


def _tell(error: ReportedError) -> ConfigRecord:
    """An error for the server, without a path."""
    reason = f"{type(error).__name__}; the node's log says more"
    if error.shareable:
        reason = f"{error.where}: found {error.found}; expected {error.expected}"
    return ConfigRecord({"reason": reason, "protocol": PROTOCOL, "version": fedapt.__version__})


def read_party(context: Context) -> Party:
    """A node's configuration, as its operator wrote it.

    Raises:
        UsageError: the folder or the domain is missing.
    """
    config = context.node_config
    for name in ("data", "domain"):
        if not isinstance(config.get(name), str) or not config[name]:
            raise UsageError(
                where="the node's configuration",
                shareable=True,
                found=f"no {name}",
                expected='the configuration data="ROOT" domain="NAME"',
                next_step="start the node with both values",
            )
    others = ("domain", "name", "model", "pretrained", "device")
    named = {n: str(config[n]) for n in others if n in config}
    root = Path(str(config["data"])).resolve()
    values: list[object] = [config.get(name, 0.0) for name in ("max_clip", "min_noise")]
    # `Party` refuses NaN
    max_clip, min_noise = (float(v) if isinstance(v, int | float) else math.nan for v in values)
    secure = config.get("secure") is True
    return Party(root, **named, secure=secure, max_clip=max_clip, min_noise=min_noise)
