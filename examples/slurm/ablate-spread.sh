#!/bin/bash
#SBATCH --job-name=ablate-spread
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%a.out
#SBATCH --signal=B:TERM@120

source .venv/bin/activate
python cli.py ablate --spread --shards /data/shards/train --val-shards /data/shards/val --cache /data/deit.zarr \
  --model deit_tiny_distilled_patch16_224 --lambda 0,0.1,0.5,0.9 --tau 1,2,4 --workers 11 --out sweeps/tiny &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"; code=$?
if kill -0 "$run" 2>/dev/null; then wait "$run"; code=$?; fi
if [ "$code" -eq 75 ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; code=0; fi
exit "$code"
