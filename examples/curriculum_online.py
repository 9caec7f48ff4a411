"""All trajectories, the most suitable first, scored again by the training steps themselves. Resumes where it stopped.

    python examples/curriculum_online.py --model Qwen/Qwen3-0.6B --data trajectories.jsonl --output_dir out

On several processes, with the same options: `accelerate launch --num_processes 2 examples/curriculum_online.py ...`.
"""

import argparse

from transformers.trainer_utils import get_last_checkpoint

from rsr_trl import RSRSFTConfig, RSRSFTTrainer
from rsr_trl.data import as_trl_format, load


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--use_cpu", action="store_true")
args = parser.parse_args()

trainer = RSRSFTTrainer(
    args.model,
    args=RSRSFTConfig(
        output_dir=args.output_dir,
        use_cpu=args.use_cpu,
        num_train_epochs=3,
        save_strategy="epoch",
        rsr_sampling="ordered",  # strictly the most suitable first; "weighted" mixes more
        rsr_rescore_strategy="online",  # each step scores its own batch; the new order shows from the next epoch
    ),
    train_dataset=as_trl_format(load(args.data), as_chat=True),
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) is not None)
trainer.save_model()
trainer.end()
