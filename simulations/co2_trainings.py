"""What co2.py trains: a classifier on data of a teacher, and the quickstart's PLM."""

from __future__ import annotations

from feedback_trainings import Task

WORKERS = 4
SEEDS = (0, 1, 2)

CLASSIFIER = Task(
    "teacher",
    "digits.yaml",
    WORKERS,
    "vmap",
    ("imports=[co2_task,co2_rules]",
     "data.name=teacher", "model.hidden=[64,32]", "optimizer.name=adamw", "optimizer.weight_decay=0",
     "schedule.name=cosine", "training.batch_size=128", "training.validation_batches=46", "training.clip_norm=null",
     "recording.log_every=240", "training.validate_every=300"),
)  # fmt: skip
PLM = Task(
    "plm",
    "quickstart.yaml",
    WORKERS,
    "loop",
    ("imports=[co2_rules]",
     "training.validation_batches=32", "training.validate_every=0", "recording.log_every=60"),
)  # fmt: skip
