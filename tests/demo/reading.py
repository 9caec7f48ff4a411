"""A reader of the demo's problems that knows nothing of how they were made."""

import re


def answer_by_reading(prompt: str) -> int:
    """The answer from the prompt's words alone: a second opinion that knows none of the generator's arithmetic."""
    sentences = re.split(r"(?<=[.?]) ", prompt)
    opening, numbers = "", []
    while len(numbers) < 2:
        opening += " " + sentences.pop(0)
        numbers = [int(n) for n in re.findall(r"\d+", opening)]
    total = numbers[0] * numbers[1] if re.search(r"(?i)\b(each|every|per)\b", opening) else numbers[0] + numbers[1]
    for sentence in sentences:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        if re.search(r"doubl", sentence):
            total *= 2
        elif re.search(r"tripl", sentence):
            total *= 3
        elif len(numbers) == 2:
            total += numbers[0] * numbers[1]
        elif "$" in sentence:
            total *= numbers[0]
        elif "equally" in sentence:
            total, rest = divmod(total, numbers[0])
            assert rest == 0, prompt
        elif numbers:
            total += numbers[0] if re.search(r"another \d|\d more", sentence) else -numbers[0]
    return total
