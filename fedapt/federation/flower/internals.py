"""The private parts of Flower that fedapt uses, each with the reason.

flwr.supercore.task_identity.TaskIdentity
    A Message reads from it the run and the node that send it. Flower's own programs set it when
    they start an app. Server and nodes of a deployment set it themselves. Versions before 1.38 do
    not have it.
the attribute `_message_id` of a Message's metadata
    The sender of a message sets its number, which has no public setter. Flower's own Grids do
    the same.
flwr.common.constant.ErrorCode
    Flower's SuperLink reports a disconnected node with an error of this code.
flwr.common.secure_aggregation.crypto.shamir
    Shamir's secret sharing, which secure rounds use.
"""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares

try:
    from flwr.supercore.task_identity import TaskIdentity
except ModuleNotFoundError:
    TaskIdentity = None  # type: ignore[assignment,misc]

NODE_UNAVAILABLE = int(ErrorCode.NODE_UNAVAILABLE)
_SERVER_NODE = 1


def set_identity(run_id: int) -> None:
    """Allow this process to create messages of this run."""
    if TaskIdentity is not None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE, 1


def set_message_id(message: Message, number: str) -> None:
    """Set the number of a message; replies to the message carry it."""
    message.metadata.__dict__["_message_id"] = number


def build_message(
    content: RecordDict, number: str, kind: str, group: str, run_id: int, node_id: int
) -> Message:
    """A message in the form in which it arrives at a node."""
    set_identity(run_id)
    message = Message(content, node_id, kind, group_id=group)
    set_message_id(message, number)
    return message


__all__ = [
    "NODE_UNAVAILABLE",
    "build_message",
    "combine_shares",
    "create_shares",
    "set_identity",
    "set_message_id",
]
