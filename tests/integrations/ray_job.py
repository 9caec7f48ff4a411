"""A Ray job as a user writes it: `python ray_job.py FOLDER STUDENT`."""

import sys
from pathlib import Path

import ray
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig

from rsr_trl.integrations.ray import score


if __name__ == "__main__":
    folder, student = Path(sys.argv[1]), sys.argv[2]
    ray.init(num_cpus=4, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="n", checkpoint_path=str(folder / "checkpoints"), delete_checkpoint_on_success=False
    )
    rows = ray.data.read_parquet(str(folder / "pool"))
    score(rows, student, actors=2, batch_size=4).write_parquet(str(folder / "scored"))
