"""Instruction data on a Ray cluster: the same work on the same faces, through Ray Data. Needs the `ray` extra.

Every node needs this package, the annotator's extras and nothing of the data: faces travel with the work. What is written is the driver's, byte for
byte what one core writes.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray

from trainer.instruct import Subject
from trainer.shards import Mapper, Member

WINDOW_FACES = 2000
"""Faces in the object store at once: some 200 MB with their twins."""
BATCH_FACES = 8

Work = Callable[[Subject], Member]


def on_ray(*, workers: int | None = None, address: str | None = None) -> Mapper:
    """A mapper for `write_instructions`: a Ray of this machine with `workers` processes (all cores when not given), or the cluster at `address`.

    A Ray that runs in this process already is used as it is; one started here is shut down after the last face. No dashboard, no usage report.
    """

    def mapped(work: Work, asked: Sequence[Subject]) -> Iterator[Member]:
        started = not ray.is_initialized()
        if started:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **local)
        try:
            for start in range(0, len(asked), WINDOW_FACES):
                yield from _window(work, asked[start : start + WINDOW_FACES])
        finally:
            if started:
                ray.shutdown()

    return mapped


def _window(work: Work, asked: Sequence[Subject]) -> Iterator[Member]:
    rows = [{"number": number, "subject": subject} for number, subject in enumerate(asked)]
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BATCH_FACES))
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would announce every plan, and that we asked for no bars
    answered = data.map_batches(partial(_batch, work=work), batch_size=None, batch_format="numpy", zero_copy_batch=True)
    for expected, row in enumerate(answered.iter_rows()):
        if row["number"] != expected:
            raise RuntimeError(f"Ray gave face {row['number']} where {expected} was due; it must preserve the order")
        yield Member(row["key"], row["jpeg"], tuple(row["samples"]))


def _batch(batch: dict[str, np.ndarray], *, work: Work) -> dict[str, list[Any] | np.ndarray]:
    members = [work(subject) for subject in batch["subject"]]
    columns = zip(*((member.key, member.jpeg, list(member.samples)) for member in members), strict=True)
    return {"number": batch["number"], **{name: list(values) for name, values in zip(("key", "jpeg", "samples"), columns, strict=True)}}
