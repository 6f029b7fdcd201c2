"""Sessions: who trains under which key, federations that grow, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedapt.core.config import read_config
from fedapt.core.errors import CheckpointError, ConfigError, DataError
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, load_domains
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.model.prompt import draw_keys
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.evaluate import evaluate_checkpoint
from fedapt.run.session import Session
from fedapt.training.evaluate import Evaluation, evaluate
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS, Learned, Method
from tests.support.tiny import write_tiny_images

NAMES = ("photo", "sketch", "webcam")
M, W, C = 2, 32, 3
SETTINGS: dict[str, Any] = {
    "prompt.context_length": M,
    "train.rounds": 2,
    "train.lr": 0.1,
    "train.evaluate_every": 2,
    "federation.min_images": 2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ImageFolders:
    root = tmp_path_factory.mktemp("images") / "data"
    return scan_folders(write_tiny_images(root, per_class=5, domains=NAMES))


@pytest.fixture(scope="module")
def domains(folders: ImageFolders, tiny_backbone: Backbone) -> list[Domain]:
    split = split_folders(folders, 0.2, 0)
    return load_domains(folders, split, image_encoder(tiny_backbone), Reporter())


@pytest.fixture
def open_session(folders: ImageFolders, domains: list[Domain], tiny_backbone: Backbone) -> Any:
    def open_session(
        names: Sequence[str] = NAMES,
        joined: Checkpoint | None = None,
        classes: tuple[str, ...] = (),
        **settings: Any,
    ) -> Session:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        config = read_config(None, [], SETTINGS | named)
        config = METHODS[config.train.method].resolve(config)
        here = folders if not classes else dataclasses.replace(folders, class_names=classes)
        own = [domain for domain in domains if domain.name in names]
        return Session(config, tiny_backbone, here, own, joined=joined)

    return open_session


def run(session: Session) -> Checkpoint:
    done = session.run(session.begin(), lambda progress: None, Reporter())
    return session.to_checkpoint(done)


# who trains


def test_a_domain_a_client_and_a_key(open_session: Any, domains: list[Domain]) -> None:
    session = open_session()
    clients = session.method.setting.clients
    assert [(c.name, c.domain, c.key) for c in clients] == [(n, i, i) for i, n in enumerate(NAMES)]
    assert all(
        torch.equal(c.data.rows, d.train.rows) for c, d in zip(clients, domains, strict=True)
    )
    info = session.to_checkpoint(session.begin()).info
    assert (info.domains, info.keys, info.clients) == (NAMES, NAMES, (0, 1, 2))
    assert (info.rounds, info.config.data.root) == (0, "")


def test_what_is_learned_reaches_the_checkpoint(open_session: Any, tmp_path: Path) -> None:
    checkpoint = run(open_session(train__seed=3))
    checkpoint.save(tmp_path / "x.safetensors")
    again = load_checkpoint(tmp_path / "x.safetensors")
    assert again.info == checkpoint.info
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    assert checkpoint.keys is not None
    assert torch.equal(checkpoint.keys, draw_keys(3, M, W, 3, "normal"))
    assert run(open_session(train__method="promptfl")).keys is None


def test_a_domain_that_was_left_out(open_session: Any) -> None:
    session = open_session(data__leave_out="photo")
    clients = session.method.setting.clients
    assert [(c.name, c.domain, c.key) for c in clients] == [("sketch", 0, 0), ("webcam", 1, 1)]
    progress = session.run(session.begin(), lambda progress: None, Reporter())
    # tested all the same
    assert set(progress.records[-1]["accuracy"]) == set(NAMES)
    found = session.evaluate(progress)
    assert {name: result.n for name, result in found.domains.items()} == dict.fromkeys(NAMES, 3)
    assert set(found.routing) == set(NAMES)
    assert set(found.routing["photo"]) == {"sketch", "webcam"}
    assert session.to_checkpoint(progress).info.domains == ("sketch", "webcam")
    # its images are not trained on: the others learn what they learn without it
    alone = open_session(["sketch", "webcam"])
    expected = alone.run(alone.begin(), lambda progress: None, Reporter())
    for name, tensor in expected.learned.items():
        assert torch.equal(progress.learned[name], tensor)


def test_a_model_of_its_own_for_a_domain_that_was_left_out(open_session: Any) -> None:
    session = open_session(train__method="local", data__leave_out="sketch")
    learned = session.begin().learned
    images = session.domains[1].test.load()
    predict = session.method.predictor(learned)
    assert predict(images, None).shape == (2, 3, C)
    assert predict(images, 0).shape == (1, 3, C)
    assert set(session.measure(learned).test) == set(NAMES)


@pytest.mark.parametrize("name", ["phto", "photo/"])
def test_leaving_out_a_domain_that_is_not_there(open_session: Any, name: str) -> None:
    with pytest.raises(DataError, match=rf"data\.leave_out = '{name}': found domains photo, ske"):
        open_session(data__leave_out=name)


def test_leaving_out_the_only_domain(open_session: Any) -> None:
    with pytest.raises(DataError, match="found domains photo; expected one of several domains"):
        open_session(["photo"], data__leave_out="photo")


@pytest.mark.parametrize(
    ("n_keys", "keys", "names"),
    [
        (1, [0, 0, 0], ("photo+sketch+webcam",)),
        (2, [0, 1, 0], ("photo+webcam", "sketch")),
        (3, [0, 1, 2], NAMES),
    ],
)
def test_fewer_keys_than_domains(
    open_session: Any, n_keys: int, keys: list[int], names: tuple[str, ...]
) -> None:
    session = open_session(prompt__n_keys=n_keys)
    assert [c.key for c in session.method.setting.clients] == keys
    checkpoint = run(session)
    assert checkpoint.info.keys == names
    assert checkpoint.keys is not None
    assert len(checkpoint.keys) == len(checkpoint.learned["adaptive_network"]) == n_keys
    evaluation = session.evaluate(Progress(checkpoint.learned, 2, ()))
    assert tuple(evaluation.routing["photo"]) == names


def test_more_keys_than_domains(open_session: Any) -> None:
    session = open_session(prompt__n_keys=5, federation__clients_per_domain=2)
    assert [c.key for c in session.method.setting.clients] == [0, 3, 1, 4, 2, 2]
    names = ("photo/1", "sketch/1", "webcam", "photo/2", "sketch/2")
    checkpoint = run(session)
    assert checkpoint.info.keys == names
    assert checkpoint.info.clients == (0, 0, 1, 1, 2, 2)
    with pytest.raises(ConfigError, match=r"prompt\.n_keys = 7: found 6 clients"):
        open_session(prompt__n_keys=7, federation__clients_per_domain=2)


def test_more_clients_a_round_than_there_are(open_session: Any) -> None:
    with pytest.raises(ConfigError, match=r"federation\.sampled = 4: found 3 clients"):
        open_session(federation__sampled=4)
    assert len(open_session(federation__sampled=3).method.setting.clients) == 3


# joining


@pytest.mark.parametrize("class_specific", [True, False])
def test_a_federation_of_one_joined_by_another(open_session: Any, class_specific: bool) -> None:
    # the new domain's name stands before the old one's, and the seed is another
    kind = {"prompt__class_specific": class_specific}
    first = run(open_session(["sketch"], train__seed=1, **kind))
    session = open_session(["photo", "sketch"], joined=first, train__seed=2, **kind)
    clients = session.method.setting.clients
    assert [(c.name, c.key) for c in clients] == [("sketch", 0), ("photo", 1)]
    begun = session.begin()
    assert (begun.rounds, begun.records) == (0, ())
    keys = session.method.frozen()["keys"]
    assert first.keys is not None
    assert torch.equal(keys[:1], first.keys)
    assert torch.equal(keys[1], draw_keys(2, M, W, 2, "normal")[1])  # drawn anew
    assert torch.equal(begun.learned["meta_prompt"], first.learned["meta_prompt"])
    network = begun.learned["adaptive_network"]
    assert list(network.shape) == [2, W]
    assert torch.equal(network[:1], first.learned["adaptive_network"])
    assert 0 < float(network[1].abs().max()) <= W**-0.5

    done = run(session)
    assert done.info.domains == done.info.keys == ("sketch", "photo")
    assert torch.equal(done.tensors["keys"], keys)  # still frozen
    assert not torch.equal(done.learned["meta_prompt"], first.learned["meta_prompt"])


def test_a_chain_of_federations_keeps_all_keys(open_session: Any) -> None:
    first = run(open_session(["webcam"]))
    second = run(open_session(["webcam", "sketch"], joined=first))
    third = run(open_session(joined=second))
    assert third.info.domains == ("webcam", "sketch", "photo")
    assert torch.equal(third.tensors["keys"][:2], second.tensors["keys"])
    assert torch.equal(second.tensors["keys"][:1], first.tensors["keys"])


def test_nobody_new_goes_on_where_the_federation_was(open_session: Any) -> None:
    first = run(open_session())
    begun = open_session(joined=first).begin()
    for name, tensor in first.learned.items():
        assert torch.equal(begun.learned[name], tensor)


@pytest.mark.parametrize("method", ["adapt", "local"])
def test_joining_with_slices_of_ones_own(open_session: Any, method: str) -> None:
    first = run(open_session(["sketch", "webcam"], train__method=method))
    session = open_session(joined=first, train__method=method, train__seed=5)
    begun = session.begin().learned["contexts"]
    assert torch.equal(begun[:2], first.learned["contexts"])
    fresh = open_session(train__method=method, train__seed=5).begin().learned["contexts"]
    assert torch.equal(begun[2], fresh[2])


@pytest.mark.parametrize("method", ["promptfl", "fedclip", "linear-probe", "cocoop", "full"])
def test_joining_where_all_is_shared(open_session: Any, method: str) -> None:
    first = run(open_session(["sketch"], train__method=method, train__rounds=1))
    begun = open_session(joined=first, train__method=method).begin().learned
    assert begun.keys() == first.learned.keys()
    assert all(torch.equal(begun[name], tensor) for name, tensor in first.learned.items())


def refuse(open_session: Any, found: str, joined: Checkpoint, *names: str, **more: Any) -> None:
    """At the start, before anything is trained."""
    with pytest.raises((CheckpointError, DataError), match=f"^join: found {found}") as caught:
        open_session(names or NAMES, joined=joined, **more).begin()
    assert caught.value.exit_code == 4


def test_the_old_domains_must_be_there(open_session: Any) -> None:
    first = run(open_session(["sketch", "webcam"]))
    refuse(open_session, "no images of webcam; expected all domains", first, "photo", "sketch")
    refuse(open_session, "no images of sketch", first, data__leave_out="sketch")


def test_a_key_for_each_domain(open_session: Any) -> None:
    first = run(open_session(["sketch", "webcam"]))
    shared = run(open_session(["sketch", "webcam"], prompt__n_keys=1))
    refuse(open_session, "2 keys for 2 domains; expected one key", first, prompt__n_keys=2)
    refuse(open_session, "1 keys for 2 domains; expected one key", shared)


@pytest.mark.parametrize("class_specific", [True, False])
def test_the_same_context(open_session: Any, class_specific: bool) -> None:
    kind = {"prompt__class_specific": class_specific}
    first = run(open_session(["sketch"], **kind))
    for length in (1, 3):
        refuse(open_session, "meta_prompt of shape", first, prompt__context_length=length, **kind)
    other = {"prompt__class_specific": not class_specific}
    refuse(open_session, "meta_prompt of shape", first, **other)


@pytest.mark.parametrize("method", ["fedapt", "fedapt-unsupervised", "promptfl", "linear-probe"])
@pytest.mark.parametrize(
    "classes",
    [("blue disc", "red square"), ("blue disc", "red square", "stripes", "x")],
    ids=["fewer", "more"],
)
def test_the_same_number_of_classes(
    open_session: Any, method: str, classes: tuple[str, ...]
) -> None:
    kind = {"train__method": method}
    first = run(open_session(["sketch"], train__rounds=1, **kind))
    refuse(
        open_session, f"images of the classes {', '.join(classes)};", first, classes=classes, **kind
    )


@pytest.mark.parametrize("method", ["fedapt", "fedapt-unsupervised", "fedclip"])
def test_the_same_classes_in_the_same_order(open_session: Any, method: str) -> None:
    kind = {"train__method": method}
    first = run(open_session(["sketch"], train__rounds=1, **kind))
    for classes in (("red square", "blue disc", "stripes"), ("blue disc", "red square", "dots")):
        found = f"images of the classes {', '.join(classes)}; expected those of the federation"
        refuse(open_session, found, first, classes=classes, **kind)


@pytest.mark.parametrize(("was", "now"), [("promptfl", "fedapt"), ("fedapt", "promptfl")])
def test_the_same_method(open_session: Any, was: str, now: str) -> None:
    first = run(open_session(["sketch"], train__method=was, train__rounds=1))
    refuse(open_session, r"\w+ of shape", first, train__method=now)


def test_a_phrase_is_no_context_of_another_method(open_session: Any) -> None:
    """CoCoOp's context fits into PromptFL's, but the network behind it would be lost."""
    first = run(open_session(["sketch"], train__method="cocoop", train__rounds=1))
    kind = {"prompt__class_specific": False, "prompt__context_length": 4}
    found = r"meta_net\.0\.weight of shape \[2, 32\]; expected None"
    refuse(open_session, found, first, train__method="promptfl", **kind)


def test_the_same_clip(open_session: Any) -> None:
    first = run(open_session(["sketch"]))
    info = dataclasses.replace(first.info, clip_sha256="0" * 64)
    other = dataclasses.replace(first, info=info)
    with pytest.raises(CheckpointError, match="expected 000000000000, which the checkpoint"):
        open_session(joined=other).begin()


# resuming


def test_a_checkpoint_of_other_tensors_does_not_fit(open_session: Any) -> None:
    checkpoint = run(open_session())
    session = open_session()
    for name, tensor in session.fit(checkpoint).items():
        assert torch.equal(tensor, checkpoint.learned[name])
    with pytest.raises(CheckpointError, match="a checkpoint of fedapt: found tensors"):
        open_session(["photo", "sketch"]).fit(checkpoint)
    with pytest.raises(CheckpointError, match="a checkpoint of fedapt: found tensors"):
        open_session(train__method="promptfl").fit(checkpoint)


# evaluating


def test_a_checkpoint_brings_its_keys(
    open_session: Any, folders: ImageFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of its seed: a federation that was joined has keys of several seeds."""
    first = run(open_session(["sketch"], train__seed=1))
    checkpoint = run(open_session(joined=first, train__seed=2))
    checkpoint.save(tmp_path / "x.safetensors")
    seen = dict[str, torch.Tensor]()

    def look(method: Method, learned: Learned, *arguments: Any, **more: Any) -> Evaluation:
        seen.update(learned | method.frozen())
        return evaluate(method, learned, *arguments, **more)

    monkeypatch.setattr("fedapt.run.evaluate.evaluate", look)
    found = evaluate_checkpoint(
        tmp_path / "x.safetensors", folders.root, exact=False, device="cpu", reporter=Reporter()
    )
    assert seen.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(seen[name], tensor)
    assert not torch.equal(seen["keys"], draw_keys(3, M, W, 2, "normal"))
    assert {name: result.n for name, result in found.domains.items()} == dict.fromkeys(NAMES, 3)
