#!/bin/bash
#SBATCH --job-name=train-srun
#SBATCH --ntasks=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x.out
#SBATCH --signal=USR1@120

source .venv/bin/activate
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
srun --kill-on-bad-exit=1 python cli.py train-student --shards /data/shards/train --val-shards /data/shards/val --cache /data/deit.zarr \
  --model deit_tiny_distilled_patch16_224 --distill soft --lambda 0.5 --tau 3 --workers 11 --out runs/tiny
code=$?

# 75: stopped by a signal, after it saved a checkpoint.
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; code=0; fi
exit "$code"
