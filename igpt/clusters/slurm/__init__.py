"""The cluster `slurm`: a job that Slurm itself starts, stops and requeues.

config.py   what a cluster file says
script.py   the sbatch script, by submitit; what --dry-run shows
client.py   Slurm's commands and what they answer
backend.py  submits, looks, cancels
node.py     in the job, one on each node: the parent of the ranks
after.py    in the job, after them: how it ended, and whether it is requeued
"""
