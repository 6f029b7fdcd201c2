"""Comparisons that train every cell, in one process and in several."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fedapt.comparison.plan import IN_DOMAIN, LEAVE_ONE_OUT, Cell, Plan
from fedapt.comparison.run import Comparison, compare
from fedapt.core.config import Config
from fedapt.core.errors import UsageError
from fedapt.core.report import Reporter
from tests.support.comparing import cells_of, comparison_config


@pytest.fixture
def config(tiny_clip: Path, tiny_images: Path) -> Config:
    return comparison_config(tiny_clip, tiny_images)


def test_cells_are_run_once_and_added_to(config: Config, tmp_path: Path) -> None:
    plan = Plan(("zero-shot", "linear-probe"), (IN_DOMAIN,), (0,), (0.1,))
    first = compare(config, plan, tmp_path, "cpu", Reporter())
    written = cells_of(tmp_path)
    assert sorted(written) == [
        "cells/in-domain/linear-probe/seed-0-lr-0.1.json",
        "cells/in-domain/zero-shot/seed-0-lr-0.3.json",
    ]
    again = compare(config, plan, tmp_path, "cpu", Reporter())
    assert cells_of(tmp_path) == written
    assert again.results == first.results
    more = Plan(("linear-probe", "promptfl"), (IN_DOMAIN, LEAVE_ONE_OUT), (0, 1), (0.1,))
    third = compare(config, more, tmp_path, "cpu", Reporter())
    assert len(third.results) == 2 * (2 + 2 * 2)
    assert written.items() <= cells_of(tmp_path).items()
    cell = Cell(IN_DOMAIN, "", "linear-probe", 0, 0.1)
    assert third.results[cell] == first.results[cell]


def test_other_images_or_another_clip_need_another_folder(
    config: Config, tiny_images: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    root, model, out = (tmp_path / name for name in ("images", "model", "out"))
    shutil.copytree(tiny_images, root)
    shutil.copytree(tiny_clip, model)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(root)),
        model=dataclasses.replace(config.model, name=str(model)),
    )

    def run(*seeds: int) -> Comparison:
        plan = Plan(("zero-shot",), (IN_DOMAIN,), seeds, (0.1,))
        return compare(config, plan, out, "cpu", Reporter())

    run(0)
    written = cells_of(out)
    one = next(path for path in sorted(root.rglob("*")) if path.is_file())
    kept = one.read_bytes()
    other = next(path for path in sorted(root.rglob("*")) if path.is_file() and path != one)
    one.write_bytes(other.read_bytes())
    with pytest.raises(UsageError, match=r"origin\.json: found a comparison with other images"):
        run(0, 1)
    one.write_bytes(kept)
    weights = next(model.glob("*.safetensors"))
    tensors = load_file(weights)
    before = weights.read_bytes()
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights)
    with pytest.raises(UsageError, match=r"origin\.json: found .* or another CLIP"):
        run(0, 1)
    weights.write_bytes(before)
    assert cells_of(out) == written
    assert len(run(0, 1).results) == 2
    (out / "origin.json").unlink()  # cells of unknown origin
    with pytest.raises(UsageError, match=r"origin\.json: found"):
        run(0)


def test_cells_run_side_by_side_are_the_same(config: Config, tmp_path: Path) -> None:
    plan = Plan(("zero-shot", "analytic", "linear-probe"), (IN_DOMAIN,), (0, 1), (0.1,))
    alone = compare(config, plan, tmp_path / "alone", "cpu", Reporter())
    lines: list[str] = []

    class Told(Reporter):
        def progress(self, what: str, done: int, total: int, note: str = "") -> None:
            if what == "cells":
                lines.append(note)

    beside = compare(config, plan, tmp_path / "beside", "cpu", Told(), processes=2)
    assert cells_of(tmp_path / "beside").keys() == cells_of(tmp_path / "alone").keys()
    assert len(lines) == len(beside.results) == 6
    for cell, result in alone.results.items():
        found = dataclasses.replace(beside.results[cell], seconds=result.seconds)
        assert found == result
    assert beside.chosen == alone.chosen
