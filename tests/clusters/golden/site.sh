#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --chdir=/shared/igpt/pretrain-1a2b3c4d-84763f35
#SBATCH --comment='a study'"'"'s run'
#SBATCH --constraint='ib&nvme'
#SBATCH --cpus-per-task=64
#SBATCH --error=/shared/igpt/pretrain-1a2b3c4d-84763f35/%j_0_log.err
#SBATCH --exclude='bad[1-3]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:8
#SBATCH --gres=nvme:1
#SBATCH --job-name=pretrain-1a2b3c4d
#SBATCH --licenses=site:1
#SBATCH --mail-type=END,FAIL,REQUEUE
#SBATCH --mail-user=me@example.org
#SBATCH --mem=0
#SBATCH --nice=100
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/igpt/pretrain-1a2b3c4d-84763f35/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=icml
#SBATCH --signal=USR2@180
#SBATCH --spread-job
#SBATCH --time=2-00:00:00
#SBATCH --wckey=study

# setup
# Slurm's warnings are for the ranks; this shell lives on to say how it ended.
trap : USR2 TERM
export PYTHONSAFEPATH=1
module load cuda
ulimit -n 65536

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.out --error /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=64 apptainer exec image.sif python -u -m igpt.clusters.slurm.node s3://bucket/study/runs/pretrain-1a2b3c4d 1


# teardown
apptainer exec image.sif python -u -m igpt.clusters.slurm.after s3://bucket/study/runs/pretrain-1a2b3c4d 1 $?
code=$?
# 75: the work is saved, or worth another try.
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"