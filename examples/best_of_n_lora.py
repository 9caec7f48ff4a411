"""LoRA on the best trajectory of each problem, chosen anew at each epoch: the student changes, and so may the choice.

    python examples/best_of_n_lora.py --model Qwen/Qwen3-0.6B --data trajectories.jsonl --output_dir out

`trajectories.jsonl` has a `problem_id`, a `prompt` and a `completion` in each line, several completions a problem.
"""

import argparse

from peft import LoraConfig

from rsr_trl import RSRSFTConfig, RSRSFTTrainer
from rsr_trl.data import as_trl_format, load


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--num_train_epochs", type=int, default=3)
args = parser.parse_args()

trainer = RSRSFTTrainer(
    args.model,
    args=RSRSFTConfig(
        output_dir=args.output_dir,
        num_train_epochs=args.num_train_epochs,
        learning_rate=1e-4,
        rsr_group_column="problem_id",
        rsr_keep_per_group=1,
        rsr_rescore_strategy="epoch",
    ),
    train_dataset=as_trl_format(load(args.data), as_chat=True),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
trainer.end()
