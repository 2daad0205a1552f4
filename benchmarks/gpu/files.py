"""What goes between device and CPU in files and messages: checkpoints, evaluation, a full memory."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import trainer
from shards.errors import device_words
from shards.index.reader import ShardReader
from shards.world import World
from student.feed.teaching import Teaching
from student.learn.evaluation import Forward, eval_batches, eval_views, evaluate
from student.recipe.settings import TrainSettings
from student.run.loop import train_many
from student.run.run_events import Checkpointed, Resumed, StudentFinished
from student.run.students import StudentJob


def files(bench: Bench) -> dict[str, Any]:
    """A run that is begun on the device, goes on on the CPU and ends on the device; the other two beside it."""
    out, kinds = bench.folder / "moved", (bench.device.type, "cpu", bench.device.type)
    resumed = [_some_steps(bench, out, kind, to_the_end=number == 2) for number, kind in enumerate(kinds)]
    wrong = [] if resumed[0] == 0 < resumed[1] < resumed[2] else [f"resumed at steps {resumed}"]
    evaluated = _evaluated(bench)
    wrong += [f"evaluation: {name} differs by {gap:.3g} %" for name, gap in evaluated.items() if gap > 1.0]
    message = _message_of_a_full_memory(bench)
    if bench.device.type == "cuda" and "lower --batch-size" not in message:
        wrong.append(f"a full memory is told as: {message}")
    return {"resumed_at": resumed, "evaluated_minus_cpu": evaluated, "full_memory": message, "wrong": wrong}


def _some_steps(bench: Bench, out: Path, device: str, *, to_the_end: bool) -> int:
    """The step at which a run went on; it is left after two checkpoints, or runs to its end."""
    sizes, resumed, saved = bench.sizes, 0, 0
    settings = TrainSettings(device=device, checkpoint_every=1, workers=min(bench.workers, 2), log_every=1)
    recipe = sizes.recipe(sizes.students[0][1], batch_size=sizes.ranks_batch, epochs=1, warmup_epochs=0)
    events = train_many(
        [StudentJob(recipe, out)], bench.index, settings=settings, teaching=Teaching.of(bench.cache), world=World()
    )
    for event in events:
        match event:
            case Resumed():
                resumed = event.step
            case Checkpointed():
                saved += 1
            case StudentFinished():
                break
        if saved == 2 and not to_the_end:
            break
    events.close()  # type: ignore[attr-defined]
    return resumed


def _evaluated(bench: Bench) -> dict[str, float]:
    """Differences in percent between evaluating one student on the device and on the CPU, both in float32."""
    learner = trainer(bench, bench.sizes.students[0][1], "fp32")
    views, results = eval_views(learner.recipe, bench.sizes.views), []
    for device in (bench.device, torch.device("cpu")):
        with ShardReader(bench.index) as reader:
            *_, last = evaluate(
                learner.core.to(device),
                eval_batches(reader, views, world=World(), workers=bench.workers),
                Forward(views=views, device=device),
                num_own=bench.index.num_samples,
            )
        assert last.result is not None, "the last event carries the result"
        results.append(last.result.metrics())
    return {name: abs(results[0][name] - value) for name, value in results[1].items()}


def _message_of_a_full_memory(bench: Bench) -> str:
    """What a user reads when the device is full."""
    try:
        torch.empty(10**15, dtype=torch.uint8, device=bench.device)
    except Exception as error:
        return device_words(error) or f"{type(error).__name__}: {error}"[:200]
    return "a petabyte was allocated"
