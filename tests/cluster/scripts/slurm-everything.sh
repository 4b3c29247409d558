#!/bin/bash

# Parameters
#SBATCH --account=earth
#SBATCH --chdir=/home/me
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=6
#SBATCH --exclude='n[3,7]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:4
#SBATCH --job-name=marc-a-b
#SBATCH --mail-type=END
#SBATCH --mem=64G
#SBATCH --no-kill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/runs/a b/slurm/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=120

# setup
set -eo pipefail
module load cuda
source 'my env/bin/activate'
set +eo pipefail
export NCCL_DEBUG=WARN
PYTHON -u -m marc_dist.cluster.sbatch_hooks begin '/runs/a b' || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/runs/a b/slurm/%j_%t_log.out' --kill-on-bad-exit=1 --wait=60 --mpi=none --cpus-per-task=6 PYTHON -u -m marc_dist.cluster.srun_task '/runs/a b'


# teardown
code=$?
PYTHON -u -m marc_dist.cluster.sbatch_hooks end '/runs/a b' $code
exit $?
