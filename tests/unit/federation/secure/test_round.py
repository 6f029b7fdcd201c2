"""A federation whose server learns sums alone: the result, what crosses the wire, who drops out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

from fedapt.core.errors import ConfigError, FederationError
from fedapt.federation.flower.secure import MASKED, SHARES, STAGES, UNMASK
from fedapt.federation.flower.secure.encoding import Encoding
from fedapt.federation.local import LocalEngine
from fedapt.model.backbone import Backbone
from fedapt.model.threads import torch_threads
from fedapt.training.methods import METHODS
from tests.support.grid import DirectGrid
from tests.support.nodes import configure, connect, open_session, run, run_round
from tests.support.tiny import write_tiny_images

DOMAINS = ("cartoon", "painting", "photo", "sketch")
SHARED = [name for name, method in METHODS.items() if method.sends and not method.owned]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four domains, three classes, six images each."""
    return write_tiny_images(tmp_path_factory.mktemp("secure") / "data", 6, DOMAINS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the local engine's clients have: another number adds up in another order."""
    with torch_threads(1):
        yield


def stages_of(grid: DirectGrid) -> list[str]:
    return [m.metadata.message_type.partition(".")[2] for m in grid.messages]


@pytest.mark.parametrize(
    ("method", "weighting"), [*((name, "uniform") for name in SHARED), ("fedapt", "samples")]
)
def test_the_secure_mean_is_the_mean(
    method: str, weighting: str, images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    settings = (f"train.method={method}", f"train.weighting={weighting}")
    plain = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    config = configure(images, tiny_clip, *settings, "federation.secure=true")
    secure = open_session(config, tiny_backbone)
    connect(plain)
    connect(secure)
    encoding, start = Encoding.of(config, 4), plain.begin().learned
    for number in range(2 if method == "fedapt" else 1):
        expected, found = (run_round(session, start, number) for session in (plain, secure))
        total = expected.n_images if weighting == "samples" else 4
        for name, tensor in expected.learned.items():
            one, other = tensor.numpy(), found.learned[name].numpy()
            # where float32 rounds the two to neighbours, they are one value further apart
            bound = 4 * 2.0 ** -(encoding.fraction_bits + 1) / total
            bound = bound + np.spacing(np.maximum(abs(one), abs(other)))
            assert (abs(one.astype(np.float64) - other) <= bound).all()
        assert any(bool((found.learned[n] != start[n]).any()) for n in start)
        assert (found.n_images, found.refused) == (expected.n_images, {})
        assert found.loss == pytest.approx(expected.loss, abs=4 * 2.0 ** -(encoding.loss_bits + 1))
        assert found.record["replies"] == 4
        assert "clipped_values" not in found.record
        # the same for both: another start in its last bit trains to another end
        start = expected.learned


def test_a_round_has_four_stages(images: Path, tiny_clip: Path, tiny_backbone: Backbone) -> None:
    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    grid = connect(session)
    (record,) = run(session).records
    assert Counter(stages_of(grid)) == Counter(dict.fromkeys(STAGES, 4))
    assert record["bytes_sent"] == sum(map(len, grid.down + grid.up))
    allowed = {"reply": {"mask_key", "share_key", "peers", "sealed", "shares"}}
    for reply in grid.replies:
        content = reply.content
        assert content.metric_records == {}  # no loss and no number of images
        for name, values in content.config_records.items():
            assert values.keys() <= allowed[name]
        for arrays in content.array_records.values():
            assert {n: (a.dtype, a.shape) for n, a in arrays.items()} == {
                # three numbers, V [3, 4, 32] and Q [4, 32]
                "words": ("uint64", (3 + 3 * 4 * 32 + 4 * 32,))
            }


def words_of(grid: DirectGrid) -> list[np.ndarray]:
    return [r.content["learned"]["words"].numpy() for r in grid.replies if "learned" in r.content]


def test_nobodys_words_can_be_read_and_the_sum_can(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    # lr so small that each update is a rounding error: all that goes up is masks
    settings = ("federation.secure=true", "train.rounds=1", "train.lr=1e-9")
    runs = []
    for _ in range(2):
        session = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
        grid = connect(session)
        run(session)
        runs.append(words_of(grid))
    first, second = runs
    for one, other in zip(first, second, strict=True):
        # the same update twice, and not a word of it the same
        assert not (one == other).any()
        # bits of noise: each of the 64 is set in half of 515 words, within 6 standard deviations
        bits = np.unpackbits(one.view(np.uint8)).reshape(len(one), 64).mean(axis=0)
        assert abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(len(one))
    # own masks are still on the sum: whoever has the vectors alone has nothing
    total = np.sum(first, axis=0, dtype=np.uint64).view(np.int64)
    assert abs(total.astype(float)).mean() > 2.0**60


def test_no_update_is_in_the_bytes(images: Path, tiny_clip: Path, tiny_backbone: Backbone) -> None:
    alone = open_session(configure(images, tiny_clip, "train.rounds=1"), tiny_backbone)
    start, clients = alone.begin().learned, alone.method.setting.clients
    updates = list(LocalEngine(alone.method).train_clients(start, clients, 0))
    config = configure(images, tiny_clip, "train.rounds=1", "federation.secure=true")
    session = open_session(config, tiny_backbone)
    grid = connect(session)
    run(session)
    wire = b"".join(grid.up)
    masked = {w.tobytes()[:16] for w in words_of(grid)}
    assert len(masked) == 4
    assert all(chunk in wire for chunk in masked)  # what is there can be found
    for update in updates:
        words = Encoding.of(config, 4).encode(update, start)
        moved = [update.learned[n] - start[n] for n in start]
        for secret in (words, *moved, *update.learned.values()):
            values = np.asarray(secret).ravel()
            for at in range(0, len(values) - 4, 16):
                if values[at : at + 4].any():
                    assert values[at : at + 4].tobytes() not in wire
    assert b"loss" not in wire


def lose(
    stages: dict[int, str], grid: list[DirectGrid]
) -> Callable[[int, Message], Message | None]:
    """Nodes that are gone from a stage on."""
    gone: set[int] = set()

    def change(node: int, reply: Message) -> Message | None:
        asked = grid[0].messages[-1].metadata.message_type.partition(".")[2]
        if stages.get(node) == asked:
            gone.add(node)
        if node not in gone:
            return reply
        return Message(Error(code=3, reason="gone"), reply_to=grid[0].messages[-1])

    return change


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_drops_out(
    stage: str, images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    settings = ("train.rounds=1", "train.weighting=samples")
    config = configure(images, tiny_clip, *settings, "federation.secure=true")
    session = open_session(config, tiny_backbone)
    grid: list[DirectGrid] = []
    grid.append(connect(session, lose({12: stage}, grid)))
    done = run(session)
    (record,) = done.records
    assert record["refused"] == {"photo": "Flower's error 3: gone"}

    # after its vector the node counts, before it does not
    counted = [0, 1, 2, 3] if stage == UNMASK else [0, 1, 3]
    assert record["replies"] == len(counted)
    plain = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    start, clients = plain.begin().learned, plain.method.setting.clients
    updates = list(LocalEngine(plain.method).train_clients(start, [clients[i] for i in counted], 0))
    for name, tensor in start.items():
        mean = tensor.double() + sum(u.learned[name].double() - tensor for u in updates) / len(
            updates
        )
        torch.testing.assert_close(done.learned[name], mean.float(), rtol=3e-7, atol=2e-8)


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_that_stay(
    stage: str, images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(images, tiny_clip, "federation.secure=true")
    session = open_session(config, tiny_backbone)
    grid: list[DirectGrid] = []
    grid.append(connect(session, lose({12: stage, 10: stage}, grid)))
    with pytest.raises(FederationError) as caught:
        run(session)
    error = caught.value
    assert error.where == "round 1"
    assert error.found.startswith("2 clients ")
    assert ", where 3 have to be; " in error.found
    assert "cartoon: Flower's error 3: gone" in error.found
    assert "photo: Flower's error 3: gone" in error.found
    if stage in STAGES[: STAGES.index(MASKED) + 1]:  # nobody was asked to unmask anything
        assert UNMASK not in stages_of(grid[0])


def test_two_clients_cannot_hide(
    tiny_images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    session = open_session(
        configure(tiny_images, tiny_clip, "federation.secure=true"), tiny_backbone
    )
    grid = connect(session)
    with pytest.raises(ConfigError, match=r"a round of 2 clients; expected 3 or more"):
        run(session)
    assert grid.messages == []


def test_a_ring_of_neighbours(tmp_path: Path, tiny_clip: Path, tiny_backbone: Backbone) -> None:
    images = write_tiny_images(tmp_path / "data", 8, ("photo", "sketch"))
    settings = ("federation.clients_per_domain=4", "federation.min_images=1", "train.rounds=1")
    secure = ("federation.secure=true", "federation.secure_neighbours=4")
    expected = run(open_session(configure(images, tiny_clip, *settings), tiny_backbone))
    session = open_session(configure(images, tiny_clip, *settings, *secure), tiny_backbone)
    grid = connect(session)
    found = run(session)
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=3e-7, atol=2e-8)
    dealt = [m for m in grid.messages if m.metadata.message_type == f"train.{SHARES}"]
    groups = [message.content["secure"]["group"] for message in dealt]
    assert len(groups) == 8
    assert all(len(group) == 5 for group in groups)


def test_values_out_of_range_are_cut_off_and_counted(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    settings = ("federation.secure=true", "federation.secure_range=1e-4", "train.rounds=1")
    session = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    connect(session)
    done = run(session)
    start = session.begin().learned
    moved = torch.cat([(done.learned[n] - start[n]).flatten() for n in start])
    assert float(moved.abs().max()) <= 1.001e-4
    plain = open_session(configure(images, tiny_clip, "train.rounds=1"), tiny_backbone)
    updates = LocalEngine(plain.method).train_clients(start, plain.method.setting.clients, 0)
    beyond = sum(
        int(((u.learned[n].double() - start[n].double()).abs() > 1e-4).sum())
        for u in updates
        for n in start
    )
    assert done.records[0]["clipped_values"] == beyond > 0


def test_words_that_are_wrong_are_refused(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    def shorten(node: int, reply: Message) -> Message:
        if node == 11 and "learned" in reply.content:
            words = reply.content["learned"]["words"].numpy()[:-1].copy()
            reply.content["learned"] = ArrayRecord({"words": Array(words)})
        return reply

    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    connect(session, shorten)
    (record,) = run(session).records
    assert record["replies"] == 3
    assert record["refused"] == {"painting": "words of uint64 [514], not uint64 [515]"}


def test_a_mask_that_stays_is_seen(images: Path, tiny_clip: Path, tiny_backbone: Backbone) -> None:
    def disturb(node: int, reply: Message) -> Message:
        if node == 11 and "learned" in reply.content:
            words = reply.content["learned"]["words"].numpy() + np.uint64(1 << 50)
            reply.content["learned"] = ArrayRecord({"words": Array(words)})
        return reply

    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    connect(session, disturb)
    with pytest.raises(FederationError, match=r"round 1: found a sum of 11258\d+ images"):
        run(session)


def test_a_node_gives_nothing_away_in_clear(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    session = open_session(
        configure(images, tiny_clip, "federation.secure=true", "train.rounds=1"), tiny_backbone
    )
    grid = connect(session)
    run(session)
    message = next(m for m in grid.messages if m.metadata.message_type == "train.masked")
    grid.replies.clear()
    plain = Message(message.content, 10, "train")
    grid.push_messages([plain])
    refusal = grid.replies[0].content["refusal"]["reason"]
    assert "the server's message: found a round without secure aggregation" in refusal
    assert grid.replies[0].content.array_records == {}


def answer_with(
    node: int, **values: Callable[[ConfigRecord], object]
) -> Callable[[int, Message], Message]:
    """One node's replies with other values of these names, where they have them."""

    def change(sender: int, reply: Message) -> Message:
        record = reply.content.config_records.get("reply")
        for name, make in values.items() if sender == node and record is not None else ():
            if name in record:
                record[name] = make(record)
        return reply

    return change


BROKEN: dict[str, dict[str, Callable[[ConfigRecord], object]]] = {
    "not two public keys of X25519": {"mask_key": lambda r: b"short"},
    "not two public keys of X25519 ": {"share_key": lambda r: bytes(32)},
    "a public key that is already in use": {"mask_key": lambda r: r["share_key"]},
    "no sealed shares for each of 3 neighbours": {"sealed": lambda r: r["sealed"][:2]},
    "no sealed shares for each of 3 neighbours ": {"sealed": lambda r: [b"x" * 132] * 2 + [b""]},
    "no sealed shares for each of 3 neighbours  ": {"peers": lambda r: [0, 1, 2]},
    "no share of each of its group": {"shares": lambda r: r["shares"][:3]},
    "no share of each of its group ": {"shares": lambda r: [s + b"x" for s in r["shares"]]},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_reply_drops_its_sender(
    reason: str, images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    connect(session, answer_with(11, **BROKEN[reason]))
    (record,) = run(session).records
    assert record["refused"] == {"painting": reason.strip()}
    assert record["replies"] == (4 if "shares" in BROKEN[reason] else 3)


def test_a_key_of_somebody_else_is_refused(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    keys: list[bytes] = []

    def copy(node: int, reply: Message) -> Message:
        record = reply.content.config_records.get("reply", ConfigRecord())
        if "mask_key" in record:
            keys.append(record["mask_key"])  # type: ignore[arg-type]
            record["mask_key"] = keys[0]
        return reply

    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    connect(session, copy)
    with pytest.raises(FederationError, match="1 clients that sent keys, where 3 have to be"):
        run(session)


def test_shares_of_another_secret_are_seen(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    grid: list[DirectGrid] = []
    gone = lose({12: MASKED}, grid)

    def change(node: int, reply: Message) -> Message | None:
        found = gone(node, reply)
        record = ConfigRecord() if found.has_error() else found.content.get("reply", {})
        if node == 10 and "shares" in record:  # of 0, 1, 3 and then of 2, which has dropped out
            shares = record["shares"]
            record["shares"] = [*shares[:3], shares[3][:4] + shares[0][4:20] + shares[3][20:]]
        return found

    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    grid.append(connect(session, change))
    with pytest.raises(FederationError, match="shares that do not give the key of client 2"):
        run(session)


def test_too_few_replies_fail_the_round_before_anything_is_unmasked(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    settings = ("federation.secure=true", "federation.min_replies=4", "train.rounds=1")
    session = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    grid: list[DirectGrid] = []
    grid.append(connect(session, lose({12: MASKED}, grid)))
    with pytest.raises(FederationError, match=r"3 clients .*federation\.min_replies.*where 4"):
        run(session)
    assert UNMASK not in stages_of(grid[0])  # else a repeated round would tell photo's update


def test_a_repeated_round_tells_nobodys_update(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    """The sum of 0, 1, 3 has been unmasked and was lost; then the sum of all is asked for."""
    settings = ("federation.secure=true", "train.rounds=1")
    session = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    grid: list[DirectGrid] = []
    grid.append(connect(session, lose({12: MASKED}, grid)))
    first = run(session)

    grid[0].contexts.clear()  # the server was started again, with a run of its own
    grid[0].change = lambda node, reply: reply  # nobody drops out any more
    with pytest.raises(FederationError) as caught:
        run(session)
    assert "a second sum of the same start" in caught.value.found

    grid[0].contexts.clear()  # the clients of before may repeat theirs
    grid[0].change = lose({12: MASKED}, grid)
    again = run(session)
    assert all(torch.equal(again.learned[n], t) for n, t in first.learned.items())


def test_a_server_that_sends_two_models_gets_noise(
    images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    config = configure(images, tiny_clip, "federation.secure=true", "train.rounds=1")
    session = open_session(config, tiny_backbone)
    grid = connect(session)
    push = grid.push_messages

    def send_another(messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.dst_node_id == 11 and "learned" in message.content:
                arrays = dict(message.content["learned"].items())
                values = arrays["meta_prompt"].numpy().copy()
                values.flat[0] += 1
                arrays["meta_prompt"] = Array(values)
                message.content["learned"] = ArrayRecord(arrays)
        return push(messages)

    grid.push_messages = send_another  # type: ignore[method-assign]
    with pytest.raises(FederationError, match=r"a sum of -?\d+ images"):
        run(session)


def test_too_few_neighbours_are_refused(
    tmp_path: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    images = write_tiny_images(tmp_path / "data", 8, ("photo", "sketch"))
    settings = ("federation.clients_per_domain=4", "federation.min_images=1", "train.rounds=1")
    secure = ("federation.secure=true", "federation.secure_neighbours=2")
    session = open_session(configure(images, tiny_clip, *settings, *secure), tiny_backbone)
    grid = connect(session)
    with pytest.raises(ConfigError, match="2 neighbours, which colluders can isolate") as caught:
        run(session)
    assert caught.value.where == "federation.secure_neighbours = 2"
    assert set(stages_of(grid)) == {"keys"}
