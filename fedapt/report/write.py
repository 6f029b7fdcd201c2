"""A run's page with the model card beside it."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.errors import DependencyError, UsageError
from fedapt.core.files import claim_file, write_text
from fedapt.core.report import Reporter
from fedapt.report.card import MODEL_CARD, build_card
from fedapt.report.figures import RunReport, collect_figures

_PAGE_SUFFIXES = (".html", ".htm")


def write_report(
    checkpoint: Path,
    out: Path,
    *,
    data: Path | None,
    pictures: bool,
    license_id: str,
    device: str,
    reporter: Reporter,
) -> RunReport:
    """Write the page to `out`, and model_card.md into the same folder.

    Args:
        data: folder of the test images; None for the figures of the records only.
        pictures: show the worst mistakes, with their file names, in the page.
        license_id: of the trained values, as model hubs write it.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DependencyError: the packages of the page are not installed; nothing was measured.
        UsageError: `out` does not end in .html, or there are neither images nor records.
        FileError: a file cannot be written, or another job writes it.
        ReportedError: see `collect_figures`.
    """
    try:
        from fedapt.report.page import build_page
    except ImportError as error:
        raise DependencyError(
            where="the run's page",
            found=f"no module {error.name}",
            expected="the packages of the extra `pages`",
            next_step="pip install 'fedapt[cpu,pages]'",
        ) from error
    if out.suffix.lower() not in _PAGE_SUFFIXES:
        raise UsageError(
            where="out",
            found=str(out),
            expected="the name of a page, such as report.html",
            next_step="choose a name that ends in .html",
        )
    with claim_file(out):
        report = collect_figures(checkpoint, data, device, reporter)
        page, card = build_page(report, pictures=pictures), build_card(report, license_id)
        write_text(out, page)
        write_text(out.with_name(MODEL_CARD), card)
    reporter.message(f"written: {out} and {out.with_name(MODEL_CARD)}")
    return report
