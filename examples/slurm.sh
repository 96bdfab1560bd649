#!/usr/bin/env bash
# Training on two nodes of four GPUs:  sbatch examples/slurm.sh settings.yaml RUN
# Run `twcli precompute` first, on one GPU. One step reads 8 batches here; --accumulate 8 on one GPU is the same step.
#SBATCH --job-name=twcli
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=4 HEAD_NODE="$head_node"

# Requeued after a time limit, the same command goes on from the last checkpoint.
srun --kill-on-bad-exit=1 bash -c 'accelerate launch \
  --multi_gpu --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * 4)) --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$HEAD_NODE" --main_process_port 29500 --mixed_precision bf16 --dynamo_backend no \
  -m twcli train --config "$0" --out "$1" --precision bf16' "$1" "$2"
