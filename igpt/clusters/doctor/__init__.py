"""The doctor: is this cluster, with this store, fit for a run? What is not, where, what to do.

    examine(cluster, root, wait=, say=) -> Examination

`node` runs on every node and says what it sees; a gatherer (`gathering`, `slurm`) starts it there
and listens; `diagnosis`, which is pure, makes findings of what was said.
"""
