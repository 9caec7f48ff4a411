"""Random conversations of awkward content: templates' own markers, empty and repeated texts, many scripts."""

import random

from tests.scoring.conversations import assistant, call, tool, user


BITS = ["<|im_end|>", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_start|>user\n", "<|eot_id|>", "<|end|>\n"]
BITS += ["<|start_header_id|>assistant<|end_header_id|>\n\n", "<|assistant|>\n", "<end_of_turn>\n"]
BITS += ["<start_of_turn>model\n", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "[INST] ", " [/INST]", "<|endoftext|>"]
BITS += ["<think>", "</think>", "<think>\n", "\n</think>\n\n", "<tool_call>\n", "\n</tool_call>", '"}}']
BITS += ["<tool_response>", "</tool_response>", "\n", "\n\n", " ", "  ", "\t", "a", "Hello", "42", "the same"]
BITS += ["😀", "👩‍👩‍👧", "漢字", "שלום", "مرحبا", "é", "e\u0301", "\u200b", "\x00", "\ue123", "\ue456"]
BITS += ["{{ x }}", "{% if %}"]


class Author:
    """Writes random conversations of awkward content."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def content(self) -> str:
        return "".join(self.random.choices(BITS, k=self.random.choice((0, 1, 1, 2, 3, 4, 5))))

    def conversation(self, alternating: bool, with_calls: bool) -> list[dict]:
        repeated = self.content()
        say = lambda: repeated if self.random.random() < 0.2 else self.content()  # noqa: E731
        if alternating:
            return [make(say()) for _ in range(self.random.randint(1, 3)) for make in (user, assistant)]
        messages = [user(say())]
        for _ in range(self.random.randint(1, 6)):
            thought = {"reasoning_content": say()} if with_calls and self.random.random() < 0.3 else {}
            kind = self.random.choice(["user", "answer", "answer", *(["call", "tool"] if with_calls else [])])
            if kind == "call":
                arguments = {"x": say()} if self.random.random() < 0.7 else {"n": self.random.randint(0, 99)}
                calls = [call(arguments)] * self.random.randint(1, 2)
                messages.append(assistant(self.random.choice(["", say()]), tool_calls=calls, **thought))
            else:
                messages.append(
                    assistant(say(), **thought) if kind == "answer" else {"user": user, "tool": tool}[kind](say())
                )
        return [*messages, assistant(say())]
