"""Checks of a node's reply before it is used.

A node may be broken or hostile. A reply is accepted if its tensors have the names, shapes and dtype
of those sent, all values are finite, the norm of the update is at most `federation.max_update`,
and the number of images and the loss are plausible.
"""

from __future__ import annotations

import dataclasses

import torch
from flwr.app import MetricRecord

from fedapt.data.partition import ClientInfo
from fedapt.federation.flower.exchange import Answer
from fedapt.federation.flower.node import Score
from fedapt.federation.flower.task import LEARNED, REFUSAL, REPLY
from fedapt.federation.flower.tensors import check_arrays, from_arrays
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned

_MAX_IMAGES = 1_000_000_000
# keeps images x loss of all clients finite
_MAX_LOSS = 1e30


def read_update(
    answer: Answer, client: ClientInfo, share: Learned, max_update: float
) -> ClientUpdate | str:
    """A client's reply, or the reason why it is refused.

    Args:
        share: the tensors that the client was sent.
        max_update: maximum norm of the difference that is accepted.
    """
    if reason := read_refusal(answer):
        return reason
    records = answer.reply.content
    if LEARNED not in records.array_records:
        return "a reply without tensors"
    arrays = records.array_records[LEARNED]
    if reason := check_arrays(arrays, share):
        return reason
    metrics = _read_metrics(answer)
    images, loss = metrics.get("images"), metrics.get("loss")
    if type(images) is not int or not 0 < images <= _MAX_IMAGES:
        return f"{images} images"
    if type(loss) is not float or not abs(loss) <= _MAX_LOSS:
        return f"a loss of {loss}"
    device = next(iter(share.values())).device
    learned = from_arrays(arrays, device)
    broken = [name for name, tensor in learned.items() if not bool(tensor.isfinite().all())]
    if broken:
        return f"{broken[0]} with NaN or infinity"
    moved = measure_update(learned, share)
    if moved > max_update:
        limit = f"{max_update:g} (federation.max_update)"
        return f"an update of norm {moved:.3g}, more than {limit}"
    return ClientUpdate(client.index, learned, images, loss)


def measure_update(learned: Learned, start: Learned) -> float:
    """L2 norm of the difference over all tensors."""
    squares = [(learned[name] - start[name]).double().square().sum() for name in learned]
    return float(torch.stack(squares).sum().sqrt())


def read_score(answer: Answer) -> Score | str:
    """A node's report of a model, or the reason why it is refused."""
    if reason := read_refusal(answer):
        return reason
    metrics = _read_metrics(answer)
    values: dict[str, float] = {}
    for field in dataclasses.fields(Score):
        value = metrics.get(field.name)
        is_count = field.name.startswith("n_")
        kind, maximum = (int, _MAX_IMAGES) if is_count else (float, 1.0)
        if type(value) is not kind or not 0 <= value <= maximum:
            return f"{field.name} = {value}"
        values[field.name] = value
    return Score(**values)  # type: ignore[arg-type]


def read_refusal(answer: Answer) -> str:
    """The reason why the reply has no result; empty if it has one."""
    reply = answer.reply
    if reply.has_error():
        return (
            f"Flower's error {reply.error.code}: {' '.join(str(reply.error.reason).split())[:300]}"
        )
    if REFUSAL in reply.content.config_records:
        return (
            str(reply.content.config_records[REFUSAL].get("reason", ""))[:600] or "no reason given"
        )
    return ""


def _read_metrics(answer: Answer) -> MetricRecord:
    return answer.reply.content.metric_records.get(REPLY) or MetricRecord()
