"""Train with Accelerate on two ranks: torchrun --standalone --nproc-per-node 2 examples/accelerate_ranks.py [FOLDER]

The feed already gives each process its part of every batch, so do not give the loader to `accelerator.prepare`.
"""

import sys

import torch
from accelerate import Accelerator
from digits import prepare, top1
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, ResNet

from student import Feed, FeedOptions

EPOCHS = 6
accelerator = Accelerator(cpu=not torch.cuda.is_available())
with accelerator.main_process_first():
    folder = prepare(sys.argv[1] if len(sys.argv) > 1 else "digits")
torch.manual_seed(0)

ranks = FeedOptions(rank=accelerator.process_index, world_size=accelerator.num_processes)
settings = {"batch_size": 64, "epochs": EPOCHS, "workers": 1, "device": accelerator.device, "options": ranks}
with Feed(folder / "shards/train", cache=folder / "teacher.zarr", **settings) as feed:
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=feed.num_classes)
    net, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=2e-3))
    accelerator.print(f"{accelerator.num_processes} processes, {feed.order.batch_size // feed.order.parts} views each")
    for epoch in range(EPOCHS):
        for batch in feed.epoch(epoch):
            with accelerator.autocast():
                logits = net(batch.images)
            hard = cross_entropy(logits.float(), batch.teacher.hard)
            accelerator.backward(0.5 * cross_entropy(logits.float(), batch.targets) + 0.5 * hard)
            optimizer.step()
            optimizer.zero_grad()
    checked = accelerator.reduce(torch.tensor(feed.pixels_checked, device=accelerator.device))
if accelerator.is_main_process:
    print(f"{int(checked)} views checked over all processes")
    print(f"student: top-1 {top1(accelerator.unwrap_model(net).cpu(), folder):.1f} %")
accelerator.end_training()
