"""fedapt's errors; the command line alone turns one into its exit code (docs/errors.md).

ReportedError (fedapt_runtime.errors): has where, found, expected and next step
|- UsageError           2  options that do not go together
|- ConfigError          3  a configuration file or an override is wrong
|- DataError            4  the images or their folders are wrong
|- ModelError           4  a CLIP model or its weights are not available
|  `- ModelNotSupported    a CLIP model whose towers fedapt cannot use
|- CheckpointError      4  a checkpoint is damaged, of another schema, or of another CLIP
|- FileError            4  a file cannot be written or read
|- FederationError      5  a client's reply cannot be used
|- ExportError          6  a graph cannot be exported
|- ParityError          7  an exported graph does not compute what the checkpoint computes
`- DependencyError      9  a package has to be installed

Examples:
    >>> try:
    ...     fedapt.train("images", rounds=0)
    ... except fedapt.errors.ConfigError as error:
    ...     print(error.where, error.expected, sep=": ")
    train.rounds: an integer from 1 to 1 000 000
"""

from __future__ import annotations

from fedapt_runtime.errors import ParityError, ReportedError


class UsageError(ReportedError):
    """Options that do not go together, or a run folder that is already taken."""

    exit_code = 2


class ConfigError(ReportedError):
    """A configuration file or an override is wrong."""

    exit_code = 3


class DataError(ReportedError):
    """The images or their folders are wrong."""

    exit_code = 4


class ModelError(ReportedError):
    """A CLIP model or its weights are not available."""

    exit_code = 4


class ModelNotSupported(ModelError):
    """A CLIP model whose towers fedapt cannot use."""


class CheckpointError(ReportedError):
    """A checkpoint is damaged, of another schema, or of another CLIP."""

    exit_code = 4


class FileError(ReportedError):
    """A file cannot be written or read."""

    exit_code = 4


class FederationError(ReportedError):
    """A client's reply cannot be used: its loss or what it learned is not finite."""

    exit_code = 5


class ExportError(ReportedError):
    """A graph cannot be exported."""

    exit_code = 6


class DependencyError(ReportedError):
    """A package has to be installed."""

    exit_code = 9


__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "ExportError",
    "FederationError",
    "FileError",
    "ModelError",
    "ModelNotSupported",
    "ParityError",
    "ReportedError",
    "UsageError",
]
