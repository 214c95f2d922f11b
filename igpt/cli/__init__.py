"""The command `igpt-jobs`: one module per verb, loaded only when the verb is used."""

from igpt.cli.app import main

__all__ = ["main"]
