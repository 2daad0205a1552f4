#!/bin/bash
#SBATCH --job-name=cache-teacher
#SBATCH --array=0-31
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --mem=48G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%a.out
#SBATCH --signal=B:TERM@120

source .venv/bin/activate
python cli.py cache-teacher \
  --shards /data/shards/train --cache /data/deit.zarr \
  --teacher regnety_160.deit_in1k --views 300 --workers 11 &
stage1=$!
trap 'kill -TERM "$stage1"' TERM
# The first wait ends when the signal arrives, the second when cache-teacher has ended.
wait "$stage1"; code=$?
if kill -0 "$stage1" 2>/dev/null; then wait "$stage1"; code=$?; fi

# 75: stopped by a signal; the cache has every finished chunk.
if [ "$code" -eq 75 ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; code=0; fi
exit "$code"
