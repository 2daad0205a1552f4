"""Train with Lightning from shards/train and teacher.zarr in the current folder."""

import lightning
import torch
from torch.nn.functional import cross_entropy, kl_div

from student import Feed

TAU, EPOCHS = 3.0, 2


class Distilled(lightning.LightningModule):
    def __init__(self, num_classes):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))

    def training_step(self, batch, _):
        logits = self.net(batch["images"])
        log_p = (logits / TAU).log_softmax(-1)
        soft = TAU**2 * kl_div(log_p, batch["teacher_log_prob"], log_target=True, reduction="batchmean")
        return 0.5 * cross_entropy(logits, batch["targets"]) + 0.5 * soft

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


with Feed("shards/train", cache="teacher.zarr", batch_size=64, epochs=EPOCHS, workers=0, device="cpu") as feed:
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Distilled(feed.num_classes), feed.loader(TAU))
