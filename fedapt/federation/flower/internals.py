"""Everything of Flower that is not public, each part with its reason.

| part | why |
|---|---|
| flwr.supercore.task_identity.TaskIdentity | a Message asks it for the run and the node that send it; Flower's own programs set it when they start an app, which the server of a deployment does itself |
| the attribute `_message_id` of a Message's metadata | the number of a message is given by whoever sends it, and has no public setter; Flower's own Grids set it so |
"""  # noqa: E501

from __future__ import annotations

from flwr.app import Message, Metadata, RecordDict

SERVER_NODE = 1


def set_identity(run_id: int) -> None:
    """Let this process make messages of this run."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 1


def set_message_id(message: Message, number: str) -> None:
    """Give a message its number, which replies to it carry."""
    message.metadata.__dict__["_message_id"] = number


def build_message(
    content: RecordDict, number: str, kind: str, group: str, run_id: int, node_id: int
) -> Message:
    """A message as it arrives at a node."""
    set_identity(run_id)
    message = Message(content, node_id, kind, group_id=group)
    set_message_id(message, number)
    return message


__all__ = ["Metadata", "build_message", "set_identity", "set_message_id"]
