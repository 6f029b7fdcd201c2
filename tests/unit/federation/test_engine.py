"""The Flower engine against the local one; what crosses the wire; replies that are not used."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord

from fedapt.core.errors import FederationError
from fedapt.model.backbone import Backbone
from fedapt.training.client import train_round
from fedapt.training.methods import METHODS
from tests.support.nodes import configure, connect, open_session, run

FEDERATED = [name for name, method in METHODS.items() if method.sends]


@pytest.mark.parametrize("method", FEDERATED)
def test_every_federated_method_learns_the_same(
    method: str, tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(tiny_images, tiny_clip, f"train.method={method}")
    here, there = (open_session(config, tiny_backbone) for _ in range(2))
    connect(there)
    local, flower = run(here), run(there)
    start = here.begin().learned
    assert flower.learned.keys() == local.learned.keys()
    for name, tensor in local.learned.items():
        torch.testing.assert_close(flower.learned[name], tensor, rtol=0, atol=1e-6)
    assert any(bool((local.learned[n] != start[n]).any()) for n in start)
    for one, other in zip(local.records, flower.records, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other.get("accuracy") == one.get("accuracy")


def test_several_clients_of_a_domain_learn_the_same(
    tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(
        tiny_images,
        tiny_clip,
        "federation.clients_per_domain=3",
        "federation.min_images=4",
        "federation.sampled_per_domain=2",
    )
    here, there = (open_session(config, tiny_backbone) for _ in range(2))
    connect(there)
    local, flower = run(here), run(there)
    for name, tensor in local.learned.items():
        torch.testing.assert_close(flower.learned[name], tensor, rtol=0, atol=1e-6)


def test_what_crosses_the_wire(tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone) -> None:
    session = open_session(configure(tiny_images, tiny_clip), tiny_backbone)
    grid = connect(session)
    done = run(session)

    assert len(grid.messages) == len(grid.replies) == 4  # two clients, two rounds
    for message in grid.messages:
        content = message.content
        assert content.array_records.keys() == {"learned", "keys"}
        assert content["learned"].keys() == {"meta_prompt", "adaptive_network"}
        assert content["keys"].keys() == {"keys"}
        assert content.config_records.keys() == {"task"}
        assert content.metric_records == {}
        assert content["task"].keys() == {
            *("protocol", "version", "config", "classes", "clip_sha256", "n_keys"),
            *("client", "domain", "key", "share", "round"),
        }
    for reply in grid.replies:
        content = reply.content
        assert content.array_records.keys() == {"learned"}
        assert content["learned"].keys() == {"meta_prompt", "adaptive_network"}
        assert content.config_records == {}
        assert content.metric_records.keys() == {"reply"}
        assert content["reply"].keys() == {"images", "loss"}
        assert content["reply"]["images"] == 24  # all that a client has
    wire = b"".join(grid.down + grid.up)
    up = b"".join(grid.up)
    for secret in (tiny_images, tiny_clip, tiny_images.parent, "000.png", "blue_disc"):
        assert str(secret).encode() not in wire
    for name in session.trained:
        assert name.encode() not in up
    for row in session.method.setting.table.features:
        assert row.numpy().tobytes()[:32] not in wire
    assert b"meta_prompt" in up  # what is there can be found
    # measured, not computed: V [3, 4, 32], Q [2, 32] both ways, keys [2, 4, 32] down, and a frame
    values = 4 * (2 * (3 * 4 * 32 + 2 * 32) + 2 * 4 * 32)
    for record in done.records:
        assert 2 * values < record["bytes_sent"] < 2 * (values + 6000)
    assert sum(r["bytes_sent"] for r in done.records) == len(wire)


def poison(change: Callable[[Message], None], node: int = 11) -> Callable[..., Message | None]:
    def act(sender: int, reply: Message) -> Message | None:
        if sender == node:
            change(reply)
        return reply

    return act


def replace(name: str, make: Callable[[np.ndarray], Array]) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        arrays = dict(reply.content["learned"].items())
        arrays[name] = make(arrays[name].numpy().copy())
        reply.content["learned"] = ArrayRecord(arrays)

    return change


def reply_with(**values: object) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        reply.content["reply"] = MetricRecord({**reply.content["reply"], **values})

    return change


def spoil(values: np.ndarray, value: float) -> Array:
    values.flat[3] = value
    return Array(values)


def lie(values: np.ndarray) -> Array:
    honest = Array(values)
    return Array(honest.dtype, honest.shape, honest.stype, honest.data[:-4])


def disguise(values: np.ndarray) -> Array:
    """Whole numbers that say they are float32, as many bytes as these are."""
    inside = Array(np.ones(values.shape, np.int32))
    return Array("float32", inside.shape, inside.stype, inside.data)


def boast(values: np.ndarray) -> Array:
    """A few bytes that say they are as many values as fit into no memory."""
    honest = Array(values)
    data = honest.data.replace(b"(3, 4, 32)", b"(9" + b"9" * 7 + b",)")
    return Array(honest.dtype, honest.shape, honest.stype, data)


def forget(reply: Message) -> None:
    arrays = dict(reply.content["learned"].items())
    del arrays["adaptive_network"]
    reply.content["learned"] = ArrayRecord(arrays)


def say_nothing(reply: Message) -> None:
    del reply.content["learned"]


BROKEN = {
    "meta_prompt with NaN or infinity": replace("meta_prompt", lambda v: spoil(v, math.nan)),
    "adaptive_network with NaN or infinity": replace(
        "adaptive_network", lambda v: spoil(v, math.inf)
    ),
    "not float32 [3, 4, 32]": replace("meta_prompt", lambda v: Array(v[:2].copy())),
    "meta_prompt of float64": replace("meta_prompt", lambda v: Array(v.astype(np.float64)[:1])),
    "bytes": replace("meta_prompt", lambda v: Array(np.zeros((3, 4, 99), np.float32))),
    "meta_prompt that is no array": replace("meta_prompt", lie),
    " that is no array": replace("meta_prompt", boast),
    "meta_prompt of float32 [3, 4, 32], not float32": replace("meta_prompt", disguise),
    "an update of norm": replace("meta_prompt", lambda v: Array(v + np.float32(100))),
    "tensors meta_prompt, not adaptive_network, meta_prompt": forget,
    "a reply without tensors": say_nothing,
    "0 images": reply_with(images=0),
    "-1 images": reply_with(images=-1),
    "2000000000 images": reply_with(images=2_000_000_000),
    "a loss of nan": reply_with(loss=math.nan),
    "a loss of -1e+300": reply_with(loss=-1e300),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_reply_is_refused_and_the_round_goes_on(
    reason: str, tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(tiny_images, tiny_clip, "train.rounds=1")
    there = open_session(config, tiny_backbone)
    connect(there, poison(BROKEN[reason]))
    done = run(there)
    (record,) = done.records
    assert record["replies"] == 1
    assert record["refused"].keys() == {"sketch"}
    assert reason in record["refused"]["sketch"]
    # the aggregate is the other's reply
    alone = open_session(config, tiny_backbone)
    client = alone.method.setting.clients[0]
    share = alone.method.share(alone.begin().learned, client)
    # as many threads as a node takes, which number decides the last bits
    update = train_round(alone.method, client, share, config.train, 0)
    for name, tensor in update.learned.items():
        assert torch.equal(done.learned[name], tensor)


def test_too_few_usable_replies_fail_the_round(
    tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(tiny_images, tiny_clip, "federation.min_replies=2")
    session = open_session(config, tiny_backbone)
    connect(session, poison(reply_with(images=0)))
    with pytest.raises(FederationError) as caught:
        run(session)
    assert caught.value.where == "round 1"
    assert caught.value.found == "1 usable replies of 2; sketch: 0 images"
    assert "federation.min_replies" in caught.value.expected


def test_a_node_that_does_not_answer_is_waited_for_so_long_and_no_longer(
    tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(tiny_images, tiny_clip, "federation.round_seconds=0.3", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    connect(session, lambda node, reply: None if node == 10 else reply)
    (record,) = run(session).records
    assert record["replies"] == 1
    assert record["refused"].keys() == {"photo"}
    assert record["refused"]["photo"].startswith("no reply within")


def test_flowers_own_errors_are_told(
    tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    def fail(node: int, reply: Message) -> Message:
        if node == 10:
            return reply
        return Message(Error(code=3, reason="out of\nluck"), reply_to=grid.messages[-1])

    session = open_session(configure(tiny_images, tiny_clip, "train.rounds=1"), tiny_backbone)
    grid = connect(session, fail)
    (record,) = run(session).records
    assert record["refused"] == {"sketch": "Flower's error 3: out of luck"}
