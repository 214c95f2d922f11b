"""The figures that are quoted of this project, each against a peer and in one run.

    python -m benchmarks                  # all; about eight minutes
    python -m benchmarks palette loader   # some
    python -m benchmarks --list

One module per subject. Each says in its docstring what was predicted before it was measured; what
came is in docs/benchmarks.md.
"""
