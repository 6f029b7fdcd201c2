"""The run folder: configuration, records, checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedapt.core.config import Config, config_to_toml, flatten, read_config
from fedapt.core.errors import UsageError
from fedapt.core.files import write_text
from fedapt.core.versions import software_versions

# settings that an operator may change during a run: they do not affect a valid reply
_OPERATION = ("min_replies", "round_seconds", "max_update")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, written before training begins."""
        return self.path / "config.toml"

    @property
    def records(self) -> Path:
        """One JSON object per round."""
        return self.path / "records.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Learned tensors after the last round."""
        return self.path / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """The round with the best validation accuracy, if there are validation images."""
        return self.path / "best.safetensors"

    @property
    def images(self) -> Path:
        """Hash of the images and their split at the start of the run."""
        return self.path / "images.sha256"

    def keep_images(self, digest: str, going_on: bool) -> bool:
        """Write the hash of a new run's images. For a resumed run, return whether it is the same.

        Raises:
            FileError: the folder cannot be written.
        """
        if going_on and self.images.is_file():
            return self.images.read_bytes().strip() == digest.encode()
        write_text(self.images, f"{digest}\n")
        return True

    def find_images(self) -> Path | None:
        """The images of the training, if they still exist.

        Raises:
            ConfigError: the run's configuration is damaged.
        """
        if not self.config.is_file():
            return None
        root = read_config(self.config).data.root
        return Path(root) if root and Path(root).exists() else None

    def check(self, config: Config, resume: bool) -> None:
        """Refuse a folder into which a run cannot be written; writes nothing.

        Raises:
            UsageError: the folder holds a run already, or one with other settings.
        """
        # a folder without a finished round may be overwritten
        if self.records.is_file() or self.checkpoint.is_file():
            if not resume:
                raise UsageError(
                    where=self.path,
                    found="a run",
                    expected="a new folder",
                    next_step="continue it with `resume`, or choose another `out`",
                )
            self._check_same(config)

    def begin(self, config: Config) -> bool:
        """Write the configuration; True if there is a checkpoint to continue from.

        Raises:
            FileError: the folder cannot be written, or the disk is full.
        """
        versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
        write_text(self.config, f"# {versions}\n\n{config_to_toml(config)}")
        return self.checkpoint.is_file()

    def _check_same(self, config: Config) -> None:
        before, now = flatten(read_config(self.config)), flatten(config)
        may_change = ""
        if config.train.schedule == "constant":  # the number of rounds then changes no round
            before["train.rounds"] = now["train.rounds"]
            may_change = " (train.rounds alone may change)"
        free = {f"federation.{name}" for name in _OPERATION}
        changed = [n for n, value in now.items() if before[n] != value and n not in free]
        if changed:
            raise UsageError(
                where=self.config,
                found=f"another value of {', '.join(changed)}",
                expected=f"the settings that the run began with{may_change}",
                next_step="remove that setting, or choose another `out`",
            )
