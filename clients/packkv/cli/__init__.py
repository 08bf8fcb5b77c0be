"""The `packkv` command. One small module per group of commands; heavy imports stay inside them.

Exit status: 0 yes or done; 1 no, or the store could not be asked; 2 the command line is wrong.
"""

from packkv.cli.app import app, main

__all__ = ["app", "main"]
