"""A Ray job as a user writes it: `python ray_job.py FOLDER STUDENT [kill]`: `kill` ends it after the first blocks."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig

from rsr_trl.integrations.ray import score


def kill_when_some_are_done(checkpoints: Path) -> None:
    while not list(checkpoints.glob("*.parquet")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_with_the_later_rows(batch):
    """So that there is a middle in which to be killed."""
    if max(batch["n"].to_pylist()) >= 24:
        time.sleep(60)
    return batch


if __name__ == "__main__":
    folder, student = Path(sys.argv[1]), sys.argv[2]
    ray.init(num_cpus=4, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().target_min_block_size = 1  # few rows are written at once, not bundled
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="n", checkpoint_path=str(folder / "checkpoints"), delete_checkpoint_on_success=False
    )
    if "kill" in sys.argv:
        threading.Thread(target=kill_when_some_are_done, args=[folder / "checkpoints"], daemon=True).start()
    rows = ray.data.read_parquet(str(folder / "pool"), override_num_blocks=12)
    scored = score(rows, student, actors=2, batch_size=4)
    if "kill" in sys.argv:
        scored = scored.map_batches(wait_with_the_later_rows, batch_format="pyarrow", batch_size=4)
    scored.write_parquet(str(folder / "scored"))
