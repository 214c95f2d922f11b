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
#SBATCH --signal=USR2@210
#SBATCH --time=24:00:00

# setup
echo "igpt-jobs: start $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" >&2
# Slurm's warnings are for the ranks; this shell lives on to say how it ended.
trap : USR2 TERM
export SLURM_EXPORT_ENV=ALL
export IGPT_FOLDER=/shared/igpt/pretrain-1a2b3c4d-84763f35
export PYTHONSAFEPATH=1
igpt_ready= igpt_settled=
igpt_settle() {
  set +eu +o pipefail; trap - ERR
  [ -z "$igpt_settled" ] || exit "$1"  # it has called the trap
  igpt_settled=yes
  code=$1
  if [ -z "$igpt_ready" ]; then
    echo "igpt-jobs: setup ended with exit code $code (last command: $2)" >&2
    [ "$code" -gt 128 ] || code=1
  fi
  export IGPT_SLURM_JOB="$(scontrol show job --oneliner "$SLURM_JOB_ID")"
  python -u -m igpt.clusters.slurm.after s3://bucket/study/runs/pretrain-1a2b3c4d 1 "$code"
  code=$?
  # 75: saved, or worth another try. The controller may be away for a while.
  if [ "$code" -eq 75 ]; then
    for pause in 5 10 20 40 80 160 0; do
      if state="$(scontrol show job --oneliner "$SLURM_JOB_ID")"; then
        case "$state" in
          *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;
          *) break ;;  # Slurm itself has done so
        esac
        scontrol requeue "$SLURM_JOB_ID" && break
      fi
      sleep "$pause"
    done
  fi
  exit "$code"
}
trap 'igpt_settle "$?" "$BASH_COMMAND"' EXIT
igpt_ready=yes
set +eu +o pipefail; trap - ERR

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.out --error /shared/igpt/pretrain-1a2b3c4d-84763f35/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=4 python -u -m igpt.clusters.slurm.node s3://bucket/study/runs/pretrain-1a2b3c4d 1


# teardown
igpt_settle "$?"