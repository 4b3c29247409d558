#!/bin/bash

# Parameters
#SBATCH --chdir=/home/me
#SBATCH --job-name=marc-a-b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/runs/a b/slurm/%j_0_log.out'
#SBATCH --qos=preemptible
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=240

# setup
PYTHON -u -m marc_dist.cluster.sbatch_hooks begin '/runs/a b' || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/runs/a b/slurm/%j_%t_log.out' --kill-on-bad-exit=1 --wait=60 PYTHON -u -m marc_dist.cluster.srun_task '/runs/a b'


# teardown
code=$?
PYTHON -u -m marc_dist.cluster.sbatch_hooks end '/runs/a b' $code
exit $?
