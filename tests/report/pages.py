"""Scored datasets to make pages of, and pages as plain data."""

from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
from datasets import Dataset

from rsr_trl.rsr import ERROR, NUM_TOKENS, SCORE_COLUMNS, TOKEN_COLUMNS, score_schema, trajectory_means
from rsr_trl.scoring.scores import content_hash, content_name


TEACHERS = ("ann", "bob", "eve")
WORDS = "so we add the numbers then multiply both sides and find that it is three hundred because of this".split()
MEASURED = list(SCORE_COLUMNS)[:3]  # RSR and its two parts
UNSCORED = {
    **dict.fromkeys(MEASURED),
    NUM_TOKENS: 0,
    ERROR: "completion is empty (whole: 12 tokens)",
    **dict.fromkeys(TOKEN_COLUMNS, []),
}


def scored_rows(tokenizer, num_problems: int = 6, teachers: tuple = TEACHERS, seed: int = 0) -> list[dict]:
    """A row for each problem and teacher with token statistics made by chance; later teachers suit less."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(num_problems):
        for place, teacher in enumerate(teachers):
            text = " ".join(" ".join(rng.choice(WORDS, 5)) + "." for _ in range(2 + place))
            row = {"problem_id": f"p{problem}", "teacher": teacher, "prompt": f"What is {problem} + {problem}?"}
            row |= {"completion": text, "correct": bool(rng.random() < 0.7)}
            rows.append(row | token_columns(tokenizer, text, rng, 1 + place / 2))
    return rows


def token_columns(tokenizer, text: str, rng: np.random.Generator, scale: float = 1.0) -> dict:
    """All columns of a scoring with token statistics."""
    ids = tokenizer(text)["input_ids"]
    surprisals = rng.gamma(1.0, 1.2, len(ids)).astype(np.float32)
    ranks = np.maximum(1, (scale * surprisals * rng.gamma(2.0, 2.0, len(ids))).astype(np.int32))
    top1 = np.where(ranks == 1, ids, rng.integers(10, 200, len(ids)))
    rank, surprisal = (float(means[0]) for means in trajectory_means(ranks, surprisals, [len(ids)]))
    scores = [
        rank / surprisal,
        rank,
        surprisal,
        len(ids),
        False,
        None,
        "fingerprint0",
        content_name(content_hash(ids, [True] * len(ids))),
    ]
    tokens = [ids, ranks.tolist(), surprisals.tolist(), top1.tolist()]
    return dict(zip(score_schema(token_stats=True), scores + tokens, strict=True))


def as_dataset(rows: list[dict], without: tuple = ()) -> Dataset:
    return Dataset.from_list([{name: row[name] for name in row if name not in without} for row in rows])


def rsr_of(rows: list[dict]) -> float:
    """RSR of a set of rows, Eq. 9."""
    rank, surprisal = (sum(row[name] for row in rows) for name in MEASURED[1:])
    return rank / surprisal


class Page(HTMLParser):
    """An HTML page taken apart. Fails on tags that aren't closed in order."""

    void = {"meta", "link", "input", "br", "img", "hr"}

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict]] = []
        self.text = defaultdict(str)  # by id of the section
        self.tokens: list[list[tuple[str, dict]]] = []  # of each heatmap: text and attributes
        self.svg_text: list[str] = []
        self._open: list[tuple[str, dict]] = []
        self._section = "page"
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self._section = attrs["id"]
        if attrs.get("class") == "heatmap":
            self.tokens.append([])
        if tag == "i" and self._in_tokens():
            self.tokens[-1].append(["", attrs])
        if tag not in self.void:
            self._open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1]}"
        self._open.pop()
        if tag in ("td", "th", "dt", "p", "span"):  # apart on the page, so apart in its text
            self.text[self._section] += " "
        if tag == "section":
            self._section = "page"

    def handle_data(self, text):
        tag = self._open[-1][0] if self._open else None
        if tag in ("script", "style"):
            return
        self.text[self._section] += text
        if tag == "i" and self._in_tokens():
            self.tokens[-1][-1][0] += text
        if tag == "text":
            self.svg_text.append(text)

    def _in_tokens(self) -> bool:
        return any(attrs.get("class") == "tokens" for _, attrs in self._open)

    def sections(self) -> dict[str, bool]:
        """Id of each section -> whether it is filled."""
        return {attrs["id"]: attrs.get("class") != "absent" for tag, attrs in self.tags if tag == "section"}

    def words(self, section: str) -> str:
        """The section's text with single spaces."""
        return " ".join(self.text[section].split())
