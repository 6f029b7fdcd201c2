"""The command `fedapt-runtime`: one file for each subcommand."""

from fedapt_runtime.cli.app import main

__all__ = ["main"]
