"""What the processes of `job_process` have imported before they are forked."""

import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM  # noqa: F401

import rsr_trl.cli.score
import rsr_trl.cli.score_summary
import rsr_trl.data
import rsr_trl.scoring.job  # noqa: F401


torch.set_num_threads(1)
