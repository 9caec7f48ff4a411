"""A pipeline as a user writes it: `python datatrove_job.py FOLDER STUDENT WORKERS [RANK]`; the task RANK kills it."""

import os
import signal
import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from rsr_trl.integrations.datatrove import ScoreRSR


def die(documents, rank, world_size):
    for document in documents:
        if rank == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


if __name__ == "__main__":
    folder, student, workers = sys.argv[1:4]
    steps = [
        JsonlReader(f"{folder}/pool", text_key="completion"),
        ScoreRSR(student, window=4),
        *[die] * (len(sys.argv) > 4),
        JsonlWriter(f"{folder}/scored", compression=None, expand_metadata=True),
    ]
    LocalPipelineExecutor(steps, tasks=2, workers=int(workers), logging_dir=f"{folder}/logs").run()
