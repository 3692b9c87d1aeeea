#!/usr/bin/env bash
# Trains on several hosts of a Slurm cluster. Submit it in the root of the checkout; arguments are those of run/train.py:
#
#   sbatch --nodes=2 run/cluster/slurm.sh --config palm_8b parallel.data=16
#
# Slurm starts run/cluster/msrun.sh once per host, which starts a worker per device. Change the lines #SBATCH to fit your
# cluster: they ask for hosts of 8 GPUs. Ascend: replace --gpus-per-node by your cluster's --gres, and set DEVICES_PER_NODE.
# Activate the environment of the package before you submit, or set PYTHON.
#
# Five minutes before the time limit, Slurm sends SIGTERM: the run saves and stops, and the job ends with exit code 130.
# The same command resumes it. scancel --signal=TERM JOB does the same at any time; scancel JOB alone leaves 30 seconds.
#
# Run so far: by Slurm 22.05 with two nodes on one machine, each with a network of its own and one CPU worker; and with
# stand-ins for srun and scontrol (tests/cli/test_cluster.py). Not run: on a cluster, on Ascend or on GPUs.
#SBATCH --job-name=palm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=palm-%j.out
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

# Slurm runs a copy of this file, so its own path says nothing.
cd "${SLURM_SUBMIT_DIR:?is set by sbatch: submit this script, do not call it}"
[[ -x run/cluster/msrun.sh ]] || fail "there is no run/cluster/msrun.sh in $PWD; submit in the root of the checkout"

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol cannot read SLURM_JOB_NODELIST"
export NODES=$SLURM_JOB_NUM_NODES
export MASTER_ADDR=${hosts%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a host differ
export DEVICES_PER_NODE=${DEVICES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
export LOGS=${LOGS:-runs/logs/job_$SLURM_JOB_ID}
unset NODE_RANK # each host takes Slurm's SLURM_NODEID

# A host that fails ends the others. One that has saved and stopped must not: they may still be saving.
export STOP_CODE=0
srun --ntasks-per-node=1 --kill-on-bad-exit=1 run/cluster/msrun.sh "$@"
if grep -q '^stopped ' "$LOGS/host_0/worker_0.log"; then
  exit 130
fi
