#!/bin/bash
#SBATCH --job-name=lambda-sweep
#SBATCH --array=0-3
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%a.out
#SBATCH --signal=B:TERM@120

source .venv/bin/activate
weights=(0 0.1 0.5 0.9)
weight=${weights[$SLURM_ARRAY_TASK_ID]}
python cli.py train-student --shards /data/shards/train --val-shards /data/shards/val --cache /data/deit.zarr \
  --model deit_tiny_distilled_patch16_224 --distill soft --lambda "$weight" --tau 3 --workers 11 --out "runs/tiny-l$weight" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"; code=$?
if kill -0 "$run" 2>/dev/null; then wait "$run"; code=$?; fi
if [ "$code" -eq 75 ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; code=0; fi
exit "$code"
