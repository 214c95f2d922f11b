"""The cluster `slurm`: a job that Slurm itself starts, stops and requeues.

config.py   what a cluster file says
script.py   the sbatch script, by submitit; what --dry-run shows
client.py   Slurm's commands and what they answer
backend.py  submits, looks, cancels
jobs.py     which job an attempt is; turn.py, which attempt a start of a job is
node.py     in the job, one on each node: the parent of the ranks
after.py    in the job, after them: how it ended, and whether it is requeued; bounds.py, how often
ray_*.py    Ray inside the job
"""
