"""What channels last gives on a CPU: forward and backward of the small CNN in both memory layouts.

    python -m benchmarks.layout [--json] [--rounds N] [--batch B] [--size PX]

Processor seconds of one thread; the layouts are interleaved, figures are medians over the rounds.

    ratio    channels last ÷ contiguous
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

from student.learn.network import make_student
from student.recipe.student_recipe import StudentRecipe

_CLASSES = 10


def step_s(network: nn.Module, images_B3HW: torch.Tensor) -> float:
    """Processor seconds of a forward and a backward."""
    start = time.process_time()
    network(images_B3HW).sum().backward()
    return time.process_time() - start


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    layouts = {"contiguous_s": torch.contiguous_format, "channels_last_s": torch.channels_last}
    networks = {
        name: make_student(StudentRecipe(model="small_cnn"), _CLASSES, seed=0).to(memory_format=layout).train()
        for name, layout in layouts.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(arguments.rounds):
        for name, network in networks.items():
            seconds[name].append(step_s(network, images.to(memory_format=layouts[name])))
    result = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = zip(seconds["channels_last_s"], seconds["contiguous_s"], strict=True)
    result["ratio"] = statistics.median(last / plain for last, plain in pairs)
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value:.3f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
