#!/bin/bash
# One training run over several nodes of a Slurm cluster:
#   sbatch [--nodes=4 --time=12:00:00 ...] scripts/train_slurm.sh dataset=lumbarv trainer.batch_size=64 [overrides]
# From the repository's root, with its environment active or PYTHON=/path/to/python. A task is a process of the run:
# nodes of 4 GPUs take --gpus-per-node=4 --ntasks-per-node=4. Three minutes before the time limit, and when
# preempted, the run ends on a checkpoint, goes back into the queue, and then on from there.
#SBATCH --job-name=diffux2ct
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of this job's own: other jobs may share the node.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT PYTHON="${PYTHON:-python}"

# A job that was put back goes on, also where its command says to start over or from a given checkpoint.
again=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  again=(trainer.resume=auto)
fi

# Without torchrun, which would kill a process that takes 30 seconds to save. srun does not take the cores a task from
# sbatch by itself, and when one task fails it ends the others.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$PYTHON" train.py "$@"' train "$@" ${again[@]+"${again[@]}"} &
step=$!

# SIGTERM ends training on a checkpoint. It goes to the tasks: srun, given it, would kill them.
put_back=""
trap 'put_back=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # near the time limit
trap : TERM # cancelled: Slurm has signalled the tasks itself

# A signal interrupts wait: wait until the step is over, then ask for its exit status, which bash remembers.
while wait "$step"; kill -0 "$step" 2>/dev/null; do :; done
wait "$step"
status=$?

# Slurm puts a preempted job back only where it does not end in time by itself.
if scontrol show job "$SLURM_JOB_ID" | grep -q " PreemptTime=[0-9]"; then
  put_back=yes
fi
if [ -n "$put_back" ] && [ "$status" -ne 0 ]; then
  echo "job $SLURM_JOB_ID: stopped by Slurm at step end, back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
