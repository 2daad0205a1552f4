"""Train a torchvision ResNet from a teacher cache in a plain loop: python examples/plain_pytorch.py [FOLDER]"""

import sys

import torch
from digits import prepare, top1
from torch.nn.functional import cross_entropy, kl_div
from torchvision.models.resnet import BasicBlock, ResNet

from student import Feed

EPOCHS, TAU = 6, 3.0
folder = prepare(sys.argv[1] if len(sys.argv) > 1 else "digits")
torch.manual_seed(0)

with Feed(folder / "shards/train", cache=folder / "teacher.zarr", batch_size=64, epochs=EPOCHS, workers=1) as feed:
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=feed.num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=EPOCHS * len(feed))
    for epoch in range(EPOCHS):
        for batch in feed.epoch(epoch):
            logits = net(batch.images)
            log_p, teacher = (logits / TAU).log_softmax(-1), batch.teacher.log_prob(TAU)
            soft = TAU**2 * kl_div(log_p, teacher, log_target=True, reduction="batchmean")
            loss = 0.3 * cross_entropy(logits, batch.targets) + 0.7 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    print(f"{feed.pixels_checked} views, each with the pixels that the teacher saw")
print(f"student: top-1 {top1(net, folder):.1f} %")
