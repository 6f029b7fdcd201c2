"""The page and the model card of the tiny run."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import fedapt
from fedapt.core.errors import DependencyError, UsageError
from fedapt.core.report import Reporter
from fedapt.report.answers import Answer
from fedapt.report.card import build_card
from fedapt.report.figures import RunReport, collect_figures
from fedapt.report.page import build_page
from fedapt.training.evaluate import DomainResult, Evaluation

# a name of a folder: without a slash
HOSTILE = '<script src="x">"|`x`\n# [y](z)\x1b[31m'


class Elements(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for n, v in attrs if n in ("src", "href", "srcset", "action")]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def figures(tiny_run: Path, tiny_images: Path) -> RunReport:
    return collect_figures(tiny_run / "checkpoint.safetensors", tiny_images, "cpu", Reporter())


def rename(report: RunReport, name: str) -> RunReport:
    """The same with a run, a domain and a class of another name, measured after each round."""
    assert report.evaluation is not None
    domains = report.evaluation.domains
    evaluation = dataclasses.replace(
        report.evaluation,
        domains={name: domains["photo"], "sketch": domains["sketch"]},
        routing={
            {"photo": name}.get(domain, domain): {
                {"photo": name}.get(key, key): share for key, share in shares.items()
            }
            for domain, shares in report.evaluation.routing.items()
        },
        calibration={
            {"photo": name}.get(n, n): e for n, e in report.evaluation.calibration.items()
        },
    )
    info = dataclasses.replace(
        report.info, classes=(name, "red_square", "stripes"), domains=(name, "sketch")
    )
    records = [r | {"accuracy": {name: 0.5, "sketch": 0.75}} for r in report.records]
    answers = [dataclasses.replace(a, domain=name, routed_to=name) for a in report.answers]
    return dataclasses.replace(
        report, name=name, info=info, evaluation=evaluation, records=records, answers=answers
    )


def test_the_files_stand_beside_each_other_and_have_the_same_figures(run: Path) -> None:
    report = fedapt.load(run).report(device="cpu")
    expected = fedapt.load(run).evaluate(device="cpu")
    assert report.accuracy == {name: d.accuracy for name, d in expected.domains.items()}
    assert report.routed == expected.routed
    assert report.calibration == expected.calibration
    assert sum(report.n_bytes) == sum(r["bytes_sent"] for r in report.records) > 0
    page = (run / "report.html").read_text("utf-8")
    card = (run / "model_card.md").read_text("utf-8")
    for shares in (report.accuracy, *report.alternatives.values(), report.routed):
        for share in shares.values():
            assert f"{100 * share:.1f} %" in page
            assert f"| {100 * share:.1f}" in card
    for title in ("Accuracy per domain", "Routing", "Reliability", "Loss", "Sent in each round"):
        assert f"<h2>{title}</h2>" in page
    assert "Confusion per class" in page


def test_the_same_run_gives_the_same_bytes(figures: RunReport) -> None:
    assert build_page(figures, pictures=True) == build_page(figures, pictures=True)
    assert build_card(figures) == build_card(figures)


def test_there_are_no_pictures_and_no_file_names_unless_asked(figures: RunReport) -> None:
    wrong = [a for a in figures.answers if not a.is_right]
    page = build_page(figures, pictures=False)
    assert wrong
    assert "<img" not in page
    assert "Worst mistakes" not in page
    assert not [a.path.name for a in figures.answers if a.path.name in page]


def test_pictures_are_inside_the_page(figures: RunReport) -> None:
    page = build_page(figures, pictures=True)
    wrong = {a.path for a in figures.answers if not a.is_right}
    assert len(re.findall("<img", page)) == min(len(wrong), 24)
    assert all(a.startswith("data:image/jpeg;base64,") for a in Elements(page).addresses)


def test_a_mistake_whose_picture_is_gone_is_left_out(figures: RunReport) -> None:
    gone = [dataclasses.replace(a, path=Path("gone.png")) for a in figures.answers]
    assert "<img" not in build_page(dataclasses.replace(figures, answers=gone), pictures=True)


def test_nothing_is_loaded_from_elsewhere(figures: RunReport) -> None:
    page = build_page(figures, pictures=False)
    elements = Elements(page)
    assert elements.addresses == []
    assert not {"script", "link", "iframe", "object"} & set(elements.tags)
    assert "url(" not in page
    assert "@import" not in page


def test_no_path_of_the_machine_is_told(figures: RunReport, tiny_clip: Path) -> None:
    for text in (build_page(figures, pictures=False), build_card(figures)):
        assert str(tiny_clip.parent) not in text
        assert f"hash {figures.info.clip_sha256[:12]}" in text


@pytest.mark.parametrize("pictures", [False, True])
def test_a_hostile_name_is_text_in_the_page(figures: RunReport, pictures: bool) -> None:
    plain = Elements(build_page(rename(figures, "plain"), pictures=pictures))
    page = build_page(rename(figures, HOSTILE), pictures=pictures)
    assert "\x1b" not in page
    assert "&lt;script src=" in page
    assert Elements(page).tags == plain.tags


def test_a_hostile_name_is_text_in_the_model_card(figures: RunReport) -> None:
    card = build_card(rename(figures, HOSTILE))
    assert "\x1b" not in card
    body = card.split("---\n", 2)[2]
    assert "<script" not in body
    assert "\n# [" not in body
    row = next(line for line in body.splitlines() if line.startswith("| &lt;script"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "\\`x\\`" in row
    data = ModelCard(card).data
    assert data.eval_results is not None
    assert data.eval_results[0].dataset_name.startswith("<script src=")


def test_a_hub_reads_the_model_card(figures: RunReport) -> None:
    data = ModelCard(build_card(figures, "apache-2.0")).data
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification"
    assert data.metrics == ["accuracy"]
    assert {"federated-learning", "prompt-tuning", "clip"} <= set(data.tags or ())
    found = {r.dataset_name: r.metric_value for r in data.eval_results or ()}
    assert found == {name: round(share, 4) for name, share in figures.accuracy.items()}


def test_a_card_without_a_license_says_so(figures: RunReport) -> None:
    card = build_card(figures)
    assert ModelCard(card).data.license == "unknown"
    assert "The trained values: not stated" in card


def test_a_run_without_its_images_has_the_figures_of_its_records(
    run: Path, tiny_images: Path
) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(tiny_images), str(run / "gone")))
    messages: list[str] = []

    class Listener(Reporter):
        def message(self, text: str) -> None:
            messages.append(text)

    report = fedapt.load(run).report(pictures=True, reporter=Listener())
    last = fedapt.load(run).records[-1]
    assert messages[0].startswith("the run's images were not found")
    assert report.accuracy == last["accuracy"]
    assert report.routed == last["routed"]
    assert report.alternatives == {}
    page = (run / "report.html").read_text("utf-8")
    assert "The test images are not available" in page
    assert "<h2>Reliability</h2>" not in page
    assert f"{100 * last['accuracy']['photo']:.1f} %" in page


def test_a_domain_without_test_images_has_no_accuracy(figures: RunReport) -> None:
    assert figures.evaluation is not None
    evaluation = Evaluation(
        "FedAPT",
        {"photo": figures.evaluation.domains["photo"], "sketch": DomainResult(0.0, 0.0, 0)},
        figures.evaluation.routing,
    )
    report = dataclasses.replace(figures, evaluation=evaluation, answers=figures.answers[:1])
    assert set(report.accuracy) == {"photo"}
    page = build_page(report, pictures=False)
    assert re.search(r"<b>sketch</b> <small>0 test images", page)
    assert "| sketch |" not in build_card(report).split("## Routing")[0]


def test_a_mean_is_of_the_same_domains_as_the_others(figures: RunReport) -> None:
    shares = figures.accuracy
    assert figures.means["FedAPT"] == pytest.approx((shares["photo"] + shares["sketch"]) / 2)
    partly = dataclasses.replace(figures, alone={"photo": 1.0})
    assert set(partly.means) == {"FedAPT", "zero-shot"}
    assert set(partly.alternatives) == {"zero-shot", "each party alone"}
    both = dataclasses.replace(figures, alone={"photo": 1.0, "sketch": 0.5})
    assert both.means["each party alone"] == 0.75
    for report in (partly, both):
        page, card = build_page(report, pictures=False), build_card(report)
        assert ("75.0 %</b><span>each party alone" in page) == (report is both)
        assert ("| 75.0 |" in card) == (report is both)


def test_a_method_without_training_is_compared_with_nothing(figures: RunReport) -> None:
    train = dataclasses.replace(figures.info.config.train, method="zero-shot")
    config = dataclasses.replace(figures.info.config, train=train)
    report = dataclasses.replace(figures, info=dataclasses.replace(figures.info, config=config))
    assert report.alternatives == {}
    assert "Nothing was trained." in build_card(report)


def test_nothing_to_report_is_an_error(run: Path) -> None:
    (run / "records.jsonl").unlink()
    with pytest.raises(
        UsageError, match="neither test images nor records of rounds beside the checkpoint"
    ):
        collect_figures(run / "checkpoint.safetensors", None, "cpu", Reporter())


def test_the_page_takes_no_other_files_place(run: Path) -> None:
    before = (run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"expected the name of a page, such as report\.html"):
        fedapt.load(run).report(run / "checkpoint.safetensors")
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_a_missing_package_is_named_before_anything_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("fedapt.report.page", "fedapt.pages"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        DependencyError, match=r"found no module jinja2; .*pip install 'fedapt\[cpu,pages\]'"
    ):
        fedapt.load(run).report()
    assert not (run / "report.html").exists()


def test_a_right_answer_is_no_mistake() -> None:
    assert Answer(Path("a"), "photo", 1, 1, 0.5).is_right
    assert not Answer(Path("a"), "photo", 1, 0, 0.5).is_right
