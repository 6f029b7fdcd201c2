"""What came back from a node, checked before anything is done with it.

A node may be broken or hostile: its reply has the names, shapes and dtype of what it was sent, is
finite, has not moved further than any training moves, and counts its images like a person would.
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

_MOST_IMAGES = 1_000_000_000
# images x loss of all clients stays a finite number
_MOST_LOSS = 1e30


def read_update(
    answer: Answer, client: ClientInfo, share: Learned, max_update: float
) -> ClientUpdate | str:
    """A client's reply, or why it is refused.

    Args:
        share: what the client was sent.
        max_update: norm of the difference that is still believed.
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
    if type(images) is not int or not 0 < images <= _MOST_IMAGES:
        return f"{images} images"
    if type(loss) is not float or not abs(loss) <= _MOST_LOSS:
        return f"a loss of {loss}"
    device = next(iter(share.values())).device
    learned = from_arrays(arrays, device)
    broken = [name for name, tensor in learned.items() if not bool(tensor.isfinite().all())]
    if broken:
        return f"{broken[0]} with NaN or infinity"
    moved = measure_update(learned, share)
    if moved > max_update:
        most = f"{max_update:g} (federation.max_update)"
        return f"an update of norm {moved:.3g}, more than {most}"
    return ClientUpdate(client.index, learned, images, loss)


def measure_update(learned: Learned, start: Learned) -> float:
    """L2 norm of what was changed, over all tensors."""
    squares = [(learned[name] - start[name]).double().square().sum() for name in learned]
    return float(torch.stack(squares).sum().sqrt())


def read_score(answer: Answer) -> Score | str:
    """What a node reports of a model, or why that is refused."""
    if reason := read_refusal(answer):
        return reason
    metrics = _read_metrics(answer)
    values: dict[str, float] = {}
    for field in dataclasses.fields(Score):
        value = metrics.get(field.name)
        is_count = field.name.startswith("n_")
        kind, most = (int, _MOST_IMAGES) if is_count else (float, 1.0)
        if type(value) is not kind or not 0 <= value <= most:
            return f"{field.name} = {value}"
        values[field.name] = value
    return Score(**values)  # type: ignore[arg-type]


def read_refusal(answer: Answer) -> str:
    """Why there is nothing to read; empty where there is."""
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
