#!/bin/bash
# One training run over several nodes of a Slurm cluster:
#   sbatch [--nodes=4 --time=12:00:00 ...] scripts/train_slurm.sh dataset=lumbarv trainer.batch_size=64 [overrides]
# From the repository's root, with its environment active or PYTHON=/path/to/python. Three minutes before the time
# limit, and when preempted, the run ends on a checkpoint, goes back into the queue, and then on from there.
#SBATCH --job-name=diffux2ct
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -uo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of this job's own: other jobs may share the node.
port=$((20000 + SLURM_JOB_ID % 20000))

# srun starts torchrun once a node; when one fails, the others are ended too and do not wait for it.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head_node:$port" \
  train.py "$@" &
step=$!

# srun and torchrun both pass SIGTERM on; it ends training on a checkpoint.
put_back=""
trap 'put_back=yes; kill -TERM "$step" 2>/dev/null' USR1 # near the time limit
trap 'kill -TERM "$step" 2>/dev/null' TERM               # preempted: Slurm itself puts the job back

# A signal interrupts wait; ask again until the step is over.
status=0
while kill -0 "$step" 2>/dev/null; do
  wait "$step"
  status=$?
done

if [ -n "$put_back" ] && [ "$status" -ne 0 ]; then
  echo "job $SLURM_JOB_ID: near its time limit at step end, back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
