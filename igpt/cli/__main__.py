"""`python -m igpt.cli` is `igpt-jobs`."""

from igpt.cli import main

main()
