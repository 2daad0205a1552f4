"""Train with the Hugging Face `Trainer` from shards/train and teacher.zarr in the current folder."""

from torch.nn.functional import cross_entropy, kl_div
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from student import Feed

TAU, EPOCHS = 3.0, 2


class Distilled(Trainer):
    def __init__(self, feed, **options):
        super().__init__(**options)
        self.feed = feed

    def get_train_dataloader(self):
        return self.feed.loader(TAU)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        answer = model(pixel_values=inputs["images"])
        log_p = (answer.logits / TAU).log_softmax(-1)
        soft = TAU**2 * kl_div(log_p, inputs["teacher_log_prob"], log_target=True, reduction="batchmean")
        loss = 0.5 * cross_entropy(answer.logits, inputs["targets"]) + 0.5 * soft
        return (loss, answer) if return_outputs else loss


with Feed("shards/train", cache="teacher.zarr", batch_size=64, epochs=EPOCHS, workers=0, device="cpu") as feed:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**shape, image_size=32, patch_size=16, num_labels=feed.num_classes)
    settings = TrainingArguments(
        "hf-run", max_steps=EPOCHS * len(feed), save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    Distilled(feed, model=ViTForImageClassification(config), args=settings).train()
