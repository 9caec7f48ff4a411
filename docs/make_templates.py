"""Prints the table of docs/formats.md: what the chat templates that TRL ships keep of a trajectory."""

from pathlib import Path

import trl
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rsr_trl.demo import STUDENT_PATH
from rsr_trl.scoring.own_text import CALLS, CONTENT, EARLIER, REASONING
from rsr_trl.scoring.tokens import ExampleTokenizer


ASK = {"role": "user", "content": "How old is Ada?"}
CALL = {"type": "function", "function": {"name": "find_person", "arguments": {"name": "Ada Lovelace"}}}
EXAMPLES = {  # column of the table -> conversation
    "reasoning_content": [ASK, {"role": "assistant", "content": "36.", "reasoning_content": "She was born in 1815."}],
    "<think> in content": [ASK, {"role": "assistant", "content": "<think>\nBorn in 1815.\n</think>\n\n36."}],
    "<think> of earlier turns": [
        ASK,
        {"role": "assistant", "content": "<think>\nBorn in 1815.\n</think>\n\n36."},
        {"role": "user", "content": "And Alan?"},
        {"role": "assistant", "content": "41."},
    ],
    "tool calls": [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "find_person", "content": "born in 1815"},
        {"role": "assistant", "content": "36."},
    ],
}
LOST = {REASONING, EARLIER, CONTENT, CALLS}
VISION = ("idefics3", "llava_next", "smolvlm", "lfm2_2_5_vl", "qwen2_5_vl", "qwen3_vl")  # students with images


def kept(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str:
    """How a table says it: kept, lost, or that the template refuses the conversation."""
    example = ExampleTokenizer(tokenizer)([{"messages": messages}])[0]
    if example.error is not None:
        return "lost" if "leaves out" in example.error else "refused"
    return "lost" if LOST & set(example.notes) else "kept"


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STUDENT_PATH)
    tokenizer.bos_token = tokenizer.eos_token  # some templates write one
    templates: dict[tuple, list[str]] = {}  # by what they keep
    for file in sorted(Path(trl.__file__).parent.joinpath("chat_templates").glob("*.jinja")):
        if file.stem in VISION or file.stem.endswith("_training"):  # the same text, with markers for the loss
            continue
        tokenizer.chat_template = file.read_text()
        templates.setdefault(tuple(kept(tokenizer, messages) for messages in EXAMPLES.values()), []).append(file.stem)
    print(f"| {' | '.join(EXAMPLES)} | templates |\n|{'---|' * (len(EXAMPLES) + 1)}")
    for outcome, names in sorted(templates.items()):
        print(f"| {' | '.join(outcome)} | {', '.join(names)} |")


if __name__ == "__main__":
    main()
