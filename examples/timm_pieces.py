"""Train with timm's optimiser, schedule, loss and EMA: python examples/timm_pieces.py [FOLDER]"""

import sys

import timm
import torch
from digits import prepare, top1
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

from student import Feed

EPOCHS = 6
folder = prepare(sys.argv[1] if len(sys.argv) > 1 else "digits")
torch.manual_seed(0)
loss_of = SoftTargetCrossEntropy()

with Feed(folder / "shards/train", cache=folder / "teacher.zarr", batch_size=64, epochs=EPOCHS, workers=1) as feed:
    net = timm.create_model("resnet10t", num_classes=feed.num_classes)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=2e-3, weight_decay=0.05)
    average = ModelEmaV3(net, decay=0.95)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=1, updates_per_epoch=len(feed), step_on_epochs=False
    )
    for epoch in range(EPOCHS):
        shown = AverageMeter()
        for batch in feed.epoch(epoch):
            logits = net(batch.images)
            # Labels and the teacher's probabilities are both soft targets, so one loss of timm serves both.
            loss = 0.3 * loss_of(logits, batch.targets) + 0.7 * loss_of(logits, batch.teacher.log_prob(1.0).exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(net)
            schedule.step_update(epoch * len(feed) + batch.step + 1)
            shown.update(loss.item(), len(batch))
        print(f"epoch {epoch + 1}: loss {shown.avg:.3f}")
print(f"student: top-1 {top1(net, folder):.1f} %, with EMA {top1(average.module, folder):.1f} %")
