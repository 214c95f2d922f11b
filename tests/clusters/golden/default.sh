#!/bin/bash

# Parameters
#SBATCH --chdir=/shared/igpt/pretrain-1a2b3c4d-84763f35
#SBATCH --cpus-per-task=4
#SBATCH --error=/shared/igpt/pretrain-1a2b3c4d-84763f35/%j_0_log.err
#SBATCH --job-name=pretrain-1a2b3c4d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/igpt/pretrain-1a2b3c4d-84763f35/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=24:00:00

# setup
# Slurm's warnings are for the ranks; this shell lives on to say how it ended.
trap : USR2 TERM
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.out --error /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=4 python -u -m igpt.clusters.slurm.node s3://bucket/study/runs/pretrain-1a2b3c4d 1


# teardown
python -u -m igpt.clusters.slurm.after s3://bucket/study/runs/pretrain-1a2b3c4d 1 $?
code=$?
# 75: the work is saved, or worth another try.
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"