"""From raw trajectories to a trained student: score with the student, keep the most suitable of each problem, train.

    python examples/raw_to_student.py --model Qwen/Qwen3-0.6B --data trajectories.jsonl --output_dir out

`trajectories.jsonl` has a `problem_id`, a `prompt` and a `completion` in each line, several completions a problem.
"""

import argparse

from rsr_trl import RSRScorer, RSRSFTConfig, RSRSFTTrainer, select_trajectories
from rsr_trl.data import as_trl_format, load


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--max_steps", type=int, default=-1)
args = parser.parse_args()

# Prompts and completions become chat messages, so that an instruct student sees its chat template.
dataset = as_trl_format(load(args.data), as_chat=True)

# One forward pass over each trajectory. A lower `rsr` suits this student better.
dataset = RSRScorer(args.model, dtype="float32", max_length=1024).score(dataset)
chosen = select_trajectories(dataset, group_column="problem_id")
print(f"Kept {len(chosen)} of {len(dataset)} trajectories")

# The paper's recipe: all that was chosen, in random order. These scores are used again for the log and the model card.
trainer = RSRSFTTrainer(
    args.model,
    args=RSRSFTConfig(output_dir=args.output_dir, max_steps=args.max_steps, max_length=1024),
    train_dataset=chosen,
)
trainer.train()
trainer.save_model()
trainer.end()
