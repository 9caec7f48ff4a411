"""Without our trainer: TRL's own SFTTrainer, with a collator that leaves out what suits the student badly.

python examples/plain_sft_trainer.py --model Qwen/Qwen3-0.6B --data trajectories.jsonl --output_dir out
"""

import argparse

import numpy as np
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rsr_trl import RSRDataCollator, RSRScorer
from rsr_trl.data import as_trl_format, load


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--bf16", type=int, default=1)
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
dataset = RSRScorer(args.model).score(as_trl_format(load(args.data), as_chat=True))
threshold = float(
    np.nanquantile(np.array(dataset["rsr"], dtype=float), 0.5)
)  # the more suitable half: lower is better

collator = RSRDataCollator(pad_token_id=tokenizer.pad_token_id, score_threshold=threshold)
trainer = SFTTrainer(
    args.model,
    # The collator reads the `rsr` column, which the trainer would otherwise remove.
    args=SFTConfig(output_dir=args.output_dir, remove_unused_columns=False, bf16=bool(args.bf16), num_train_epochs=1),
    data_collator=collator,
    train_dataset=dataset,
    processing_class=tokenizer,
)
trainer.train()
print(f"{collator.num_dropped} of {len(dataset)} trajectories were left out (RSR above {threshold:.2f})")
trainer.end()
