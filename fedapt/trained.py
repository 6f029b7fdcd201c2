"""A trained run: its checkpoint, with the functions that measure, report and export it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedapt.core.config import Config, read_config
from fedapt.core.errors import UsageError
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.run.folder import RunFolder
from fedapt.run.settings import AnyPath, Images, find_images

if TYPE_CHECKING:
    from fedapt.report.figures import RunReport
    from fedapt.training.evaluate import Evaluation
    from fedapt_export.deliver import Delivered
    from fedapt_export.engine import EngineSettings


@dataclass(frozen=True)
class Run:
    """A trained checkpoint and the folder that it is in.

    Attributes:
        checkpoint: the .safetensors file.
        evaluation: evaluation at the end of the training; None for a loaded run.

    Examples:
        >>> run = fedapt.load("run")
        >>> run.config.train.rounds
        3
        >>> [record["round"] for record in run.records]
        [1, 2, 3]
    """

    checkpoint: Path
    evaluation: Evaluation | None = None

    @property
    def folder(self) -> RunFolder:
        """The run folder: names of its files."""
        return RunFolder(self.checkpoint.parent)

    @cached_property
    def config(self) -> Config:
        """The settings that it was trained with.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
        """
        from fedapt.model.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint).info.config

    @property
    def records(self) -> list[Record]:
        """One record for each round, with losses and accuracies."""
        return read_records(self.folder.records)

    def images(self, part: str = "test") -> list[Path]:
        """The run's own images of a part: `train`, `validation` or `test`.

        Raises:
            DataError: they are not there any more, or the folders are wrong.

        Examples:
            >>> len(fedapt.load("run").images("test"))
            12
        """
        from fedapt.data.collection import open_collection

        return open_collection(read_config(self.folder.config).data).paths(part)

    def evaluate(
        self,
        data: Images | None = None,
        *,
        exact: bool = False,
        device: str = "auto",
        reporter: Reporter | None = None,
    ) -> Evaluation:
        """Measure the checkpoint on each domain's test images, with zero-shot CLIP beside it.

        Args:
            data: see `train`; None takes the run's own images.
            exact: encode every image's own prompts; exact and slow.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            UsageError: the run's own images are not there, or its method has no exact prompts.
            ReportedError: see `fedapt.errors`.

        Examples:
            >>> evaluation = fedapt.load("run").evaluate()
            >>> sorted(evaluation.domains)
            ['photo', 'sketch']
            >>> 0 <= evaluation.mean <= 1
            True
        """
        from fedapt.run.evaluate import evaluate_checkpoint

        root = self.folder.find_images() if data is None else find_images(data)
        if root is None:
            raise UsageError(
                where="data",
                found="no folder, and the images of the run folder do not exist here",
                expected="the folder with the domains",
                next_step="name the folder",
            )
        return evaluate_checkpoint(
            self.checkpoint, root, exact=exact, device=device, reporter=reporter or Reporter()
        )

    def report(
        self,
        out: AnyPath | None = None,
        *,
        data: Images | None = None,
        pictures: bool = False,
        license_id: str = "unknown",
        device: str = "auto",
        reporter: Reporter | None = None,
    ) -> RunReport:
        """Write one page with all figures of the run, and model_card.md beside it.

        Args:
            out: the page; None for report.html in the run folder.
            data: see `train`; None takes the run's own images. Where these are not here, the page
                has the figures of the records alone.
            pictures: show the worst mistakes with their file names; test images may be private.
            license_id: licence of the trained values, as model hubs write it, such as `apache-2.0`.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            DependencyError: the packages of the extra `pages` are not installed.
            UsageError: `out` is no page, or there are neither images nor records.
            ReportedError: see `fedapt.errors`.

        Examples:
            >>> report = fedapt.load("run").report("report.html")
            >>> sorted(report.accuracy)
            ['photo', 'sketch']
        """
        from fedapt.report.write import write_report

        return write_report(
            self.checkpoint,
            self.folder.path / "report.html" if out is None else Path(out),
            data=self.folder.find_images() if data is None else find_images(data),
            pictures=pictures,
            license_id=license_id,
            device=device,
            reporter=reporter or Reporter(),
        )

    def export(
        self,
        out: AnyPath,
        *,
        trt: bool | EngineSettings = False,
        triton: AnyPath | None = None,
        web: AnyPath | None = None,
        onnxruntime_web: AnyPath | None = None,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> Delivered:
        """Fuse the checkpoint with its CLIP into one ONNX file; every export is verified.

        Args:
            out: the .onnx file to write, or the head's .safetensors.
            trt: also build a TensorRT engine beside it; its settings, or True for the defaults.
            triton: also write a Triton model repository into this folder.
            web: also write a static page that runs the model in browsers into this folder.
            onnxruntime_web: the npm package that the page needs; by default npm fetches it.
            settings: fields of `fedapt_export.settings.ExportSettings`, such as `precision="fp16"`.

        Raises:
            ParityError: the graph does not compute what the checkpoint computes.
            UsageError: an unknown field, or settings that do not go together.
            ReportedError: see `fedapt.errors`.

        Examples:
            >>> delivered = fedapt.load("run").export("model.onnx")
            >>> delivered.exported.manifest.domains
            ('photo', 'sketch')
        """
        from fedapt_export.deliver import deliver
        from fedapt_export.engine import EngineSettings
        from fedapt_export.settings import ExportSettings

        known = [field.name for field in dataclasses.fields(ExportSettings)]
        if unknown := [name for name in settings if name not in known]:
            raise UsageError(
                where="export",
                found=f"the unknown setting {unknown[0]!r}",
                expected=f"one of {', '.join(known)}",
                next_step="check the spelling",
            )
        return deliver(
            self.checkpoint,
            Path(out),
            ExportSettings(**settings),
            reporter or Reporter(),
            engine=trt if isinstance(trt, EngineSettings) else None,
            trt=bool(trt),
            triton=None if triton is None else Path(triton),
            web=None if web is None else Path(web),
            onnxruntime_web=None if onnxruntime_web is None else Path(onnxruntime_web),
        )
