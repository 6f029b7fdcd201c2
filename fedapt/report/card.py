"""The model card: Markdown for people, with YAML in front as model hubs read it.

Source: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import fedapt
from fedapt.core.names import FUSED_METHODS
from fedapt.report.figures import RunReport, describe_clip, say_count
from fedapt.training.evaluate import LOW_ROUTING
from fedapt.training.methods import METHODS
from fedapt_runtime.printable import printable

MODEL_CARD = "model_card.md"
_HUB = "hf-hub:"
_TAGS = ("federated-learning", "image-classification", "clip", "fedapt")
_PROMPT_TAGS = ("prompt-tuning", "domain-adaptation")
# signs that Markdown reads as markup, and the ampersand of HTML's names for characters
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$-])")


def build_card(report: RunReport, license_id: str = "unknown") -> str:
    """The model card; it has no path of a machine, and no name of an image.

    Args:
        license_id: of the trained values, as model hubs write it, such as `apache-2.0`.
    """
    parts = [
        _front_matter(report, license_id),
        _head(report),
        _accuracy(report),
        _routing(report),
        _calibration(report),
        _data(report),
        _usage(report),
        _licences(report, license_id),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape_markdown(text: str) -> str:
    """A stranger's name in Markdown: no markup, HTML, cell or line of its own."""
    return _MARKUP.sub(r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _quote(text: str) -> str:
    """A double-quoted scalar of YAML, which takes JSON's."""
    return json.dumps(printable(text), ensure_ascii=False)


def _front_matter(report: RunReport, license_id: str) -> str:
    tags = _TAGS + (_PROMPT_TAGS if report.info.method in FUSED_METHODS else ())
    lines = [
        "---",
        f"license: {_quote(license_id)}",
        "library_name: fedapt",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "metrics:",
        "- accuracy",
    ]
    model = report.info.model
    if model.startswith(_HUB):
        lines.append(f"base_model: {_quote(model.removeprefix(_HUB))}")
    if report.accuracy:
        lines += ["model-index:", f"- name: {_quote(report.name)}", "  results:"]
    for domain, share in report.accuracy.items():
        lines += [
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {_quote(domain)}",
            "      type: image-folder",
            "      split: test",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {share:.4f}",
            "      name: test accuracy",
        ]
    return "\n".join([*lines, "---"])


def _head(report: RunReport) -> str:
    info, method = report.info, METHODS[report.info.method]
    source = f" ({method.source})" if method.source else ""
    text = (
        f"# {escape_markdown(report.name)}\n\n"
        f"An image classifier for {len(info.classes)} classes by the method {report.title}{source}"
        f" on the CLIP {escape_markdown(describe_clip(report))}."
    )
    if not method.trains:
        return f"{text} Nothing was trained."
    by = f"{say_count(len(info.clients), 'client')} in {say_count(info.rounds, 'round')}"
    return f"{text} {by} trained it with fedapt {fedapt.__version__}."


def _accuracy(report: RunReport) -> str:
    if not report.accuracy:
        return (
            "## Accuracy\n\nThe accuracy was not measured, because no test images were available."
        )
    series = {report.title: report.accuracy, **report.alternatives}
    counts = report.n_images
    rows = [
        [
            escape_markdown(domain),
            str(counts.get(domain, "")),
            *(_percent(shares[domain]) if domain in shares else "" for shares in series.values()),
        ]
        for domain in report.accuracy
    ]
    means = [_percent(report.means[t]) if t in report.means else "" for t in series]
    rows.append(["mean", str(sum(counts.values()) or ""), *means])
    table = _table(["domain", "test images", *series], rows)
    return f"## Accuracy\n\nShare of right answers on test images, in %.\n\n{table}"


def _routing(report: RunReport) -> str:
    if not report.routed:
        return ""
    rows = [[escape_markdown(name), _percent(share)] for name, share in report.routed.items()]
    text = (
        "## Routing\n\nEach image is routed to the key with the maximum weight. The table"
        " shows the share of a domain's test images that are routed to a key of their own domain,"
        " in %."
    )
    if low := [name for name, share in report.routed.items() if share < LOW_ROUTING]:
        text += (
            f" The share is below {100 * LOW_ROUTING:.0f} % for"
            f" {', '.join(map(escape_markdown, low))}. For these domains, `routed_to` does not"
            " show the domain of an image."
        )
    return f"{text}\n\n{_table(['domain', 'routed to its own key'], rows)}"


def _calibration(report: RunReport) -> str:
    if not report.calibration:
        return ""
    rows = [[escape_markdown(name), _percent(error)] for name, error in report.calibration.items()]
    return (
        "## Calibration\n\nExpected calibration error over 15 bins of confidence, in %. Source:"
        " arXiv 1706.04599.\n\n" + _table(["domain", "error"], rows)
    )


def _data(report: RunReport) -> str:
    info = report.info
    trained = ", ".join(map(escape_markdown, info.domains))
    others = [escape_markdown(n) for n in report.accuracy if n not in info.domains]
    lines = [
        "## Data",
        "",
        f"- Domains that trained: {trained}",
        *([f"- Domains that were tested and did not train: {', '.join(others)}"] if others else []),
        f"- Classes: {', '.join(map(escape_markdown, info.classes))}",
        "- Each client trained only on its own images.",
    ]
    last = next((r for r in reversed(report.records) if "epsilon" in r), None)
    if last is not None:
        delta = info.config.federation.delta
        lines.append(f"- Differential privacy: epsilon {last['epsilon']:.2f} at delta {delta:g}")
    return "\n".join(lines)


def _usage(report: RunReport) -> str:
    method = METHODS[report.info.method]
    if method.not_fused:
        return (
            f"## How to run\n\n{report.title} has no fused graph: {method.not_fused}. Measure it"
            " with fedapt:\n\n```\nfedapt evaluate checkpoint.safetensors --data ROOT\n```"
        )
    client = " --client NAME" if method.owned and not method.sends else ""
    return (
        "## How to run\n\nExport the checkpoint once with fedapt, then classify with"
        " fedapt-runtime, which needs no torch:\n\n"
        "```\n"
        f"fedapt export checkpoint.safetensors --out model.onnx{client}\n"
        "pip install 'fedapt-runtime[cpu]'\n"
        "fedapt-runtime classify model.onnx photos/ --out predictions.jsonl\n"
        "```\n\n"
        "```python\n"
        "from fedapt_runtime import Classifier\n\n"
        'classifier = Classifier.load("model.onnx")\n'
        '(prediction,) = classifier(["photo.jpg"])\n'
        "print(prediction.label, prediction.score, prediction.routed_to)\n"
        "```"
    )


def _licences(report: RunReport, license_id: str) -> str:
    trained = "not stated" if license_id == "unknown" else escape_markdown(license_id)
    own = "Apache-2.0" if report.info.model == "lite" else "its own licence"
    tower = f"{own}, also for an exported model, which contains its image tower"
    return "\n".join(
        [
            "## Licences",
            "",
            f"- The trained values: {trained}",
            f"- CLIP {escape_markdown(describe_clip(report))}: {tower}",
            "- The images: those of the clients, not part of the model",
            "- fedapt and fedapt-runtime: Apache-2.0",
        ]
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, align, *rows))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
