#!/bin/bash
#SBATCH --job-name=train-torchrun
#SBATCH --gpus=8
#SBATCH --cpus-per-task=96
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x.out
#SBATCH --signal=B:TERM@120

source .venv/bin/activate
torchrun --standalone --nproc-per-node 8 cli.py train-student --shards /data/shards/train --val-shards /data/shards/val --cache /data/deit.zarr \
  --model deit_tiny_distilled_patch16_224 --distill soft --lambda 0.5 --tau 3 --workers 11 --out runs/tiny &
run=$!
signalled=0
trap 'signalled=1; kill -TERM "$run"' TERM
wait "$run"; code=$?
if kill -0 "$run" 2>/dev/null; then wait "$run"; code=$?; fi

# torchrun does not return the exit code of its ranks, so requeue after every signal.
if [ "$code" -ne 0 ] && [ "$signalled" -eq 1 ]; then scontrol requeue "$SLURM_JOB_ID"; code=0; fi
exit "$code"
