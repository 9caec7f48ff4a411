"""`rsr show`: one trajectory in the terminal, token by token: where it surprises the student, and where it suits."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, option_parser


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rsr_trl.report.tokens import Sentence, Token


# Backgrounds from low to high, each with a foreground that has a contrast of at least 5 to it. They are viridis, whose
# lightness rises evenly, so that it can be read without seeing hues.
RAMP = (
    ("#440154", "#ffffff"),
    ("#414487", "#ffffff"),
    ("#2a788e", "#ffffff"),
    ("#22a884", "#000000"),
    ("#7ad151", "#000000"),
    ("#fde725", "#000000"),
)
STEPS = {"surprisal": (0.0, 0.1, 0.5, 1.0, 2.0, 4.0), "rank": (1, 2, 3, 6, 21, 101)}  # where each colour begins
MARKED_STEP = 4  # from this one on a token gets a mark where there are no colours
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
NUM_LISTED = 10  # most surprising tokens
FEW_TOKENS = 5  # a sentence of fewer says little by its ratio
PROMPT_CHARACTERS = 160
BEFORE_CHARACTERS = 24  # what stands before a listed token
TOKEN_CHARACTERS = 16


@dataclass
class ShowArguments:
    """
    What to show, and how.

    Args:
        row (`int`): Row of the dataset, counted from 0.
        tokenizer (`str`, *optional*): The student's tokenizer; by default that of the student named in the dataset.
        color_by (`str`, *optional*, defaults to `"surprisal"`): What the colour of a token says.
        r_max (`int`, *optional*, defaults to `100`): Ranks are clipped here.
        teacher_column, problem_column, correctness_column (`str`, *optional*): What to say about the row.
        json (`bool`, *optional*, defaults to `False`): Whether to print the tokens as JSON.
    """

    _argument_group_name = "show"

    row: int = field(metadata={"help": "Row of the dataset, counted from 0."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "The student's tokenizer: Hub id or folder; by default that of the student which the dataset's "
            "card names."
        },
    )
    color_by: Literal["surprisal", "rank"] = field(
        default="surprisal", metadata={"help": "What the colour of a token says."}
    )
    r_max: int = field(default=100, metadata={"help": "Clip ranks at this value."})
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    problem_column: str | None = field(
        default=None, metadata={"help": "Column that names the problem; `problem_id` by default, where there is one."}
    )
    correctness_column: str | None = field(
        default=None, metadata={"help": "Boolean column, whether it is correct; `correct` by default."}
    )
    json: bool = field(
        default=False, metadata={"help": "Print the tokens as one JSON object on standard output, and nothing else."}
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, ShowArguments),
        prog=prog,
        description="Show one trajectory of a dataset that was scored with --token_stats: each token by how much it "
        "surprises the student, and the RSR of each sentence. A lower RSR suits the student better.",
    )


def main(data_args: DatasetArguments, show_args: ShowArguments) -> None:
    from rsr_trl import data
    from rsr_trl.cli import summary
    from rsr_trl.report.rows import prompt_of
    from rsr_trl.report.tokens import check_token_columns, load_tokenizer, read_tokens, sentences, student_of
    from rsr_trl.report.turns import TurnFinder
    from rsr_trl.rsr import ERROR, RSR

    summary.without_bars()
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    if not 0 <= show_args.row < len(dataset):
        raise ValueError(
            f"There is no row {show_args.row}: {data_args.dataset_name!r} has {len(dataset):,} rows, counted from 0."
        )
    row = dataset[show_args.row]
    if RSR not in row:
        raise ValueError("The dataset has no scores. Score it first with `rsr score --token_stats`.")
    if row[RSR] is None:
        raise ValueError(f"Row {show_args.row} has no score: {row[ERROR]}.")
    check_token_columns(row)
    labels = _labels(row, show_args)
    tokenizer = load_tokenizer(data_args.dataset_name, show_args.tokenizer)
    tokens = read_tokens(row, tokenizer)
    parts = sentences(tokens, show_args.r_max, TurnFinder(tokenizer)(row))
    facts = _facts(row, tokens, show_args) | {"student": student_of(data_args.dataset_name), **labels}
    if show_args.json:
        summary.print_json(facts | _as_data(tokens, parts))
    else:
        # The picture is what was asked for, so it goes to standard output, as data does.
        _print(Console(highlight=False), facts, tokens, parts, prompt_of(row), show_args)


def _labels(row: "Mapping", args: ShowArguments) -> dict:
    """Teacher, problem and correctness of the row, as far as there are columns."""
    labels = {}
    for label, option, default in (
        ("teacher", "teacher_column", "teacher"),
        ("problem", "problem_column", "problem_id"),
        ("correct", "correctness_column", "correct"),
    ):
        asked = vars(args)[option]
        if asked is not None and asked not in row:
            raise ValueError(f"There is no column {asked!r} ({option}). The dataset has: {', '.join(row)}.")
        labels[label] = row.get(asked or default)
    return labels


def _facts(row: "Mapping", tokens: "Sequence[Token]", args: ShowArguments) -> dict:
    """The scores of the row as a whole."""
    from rsr_trl.cli.summary import DIRECTION, finite
    from rsr_trl.rsr import RSR, TRUNCATED, rsr_from_means, trajectory_means

    ranks, surprisals = [token.rank for token in tokens], [token.surprisal for token in tokens]
    rank, surprisal = (means[0] for means in trajectory_means(ranks, surprisals, [len(tokens)], args.r_max))
    return {
        "row": args.row,
        "rsr": finite(rsr_from_means(rank, surprisal)),
        "direction": DIRECTION,
        "r_max": args.r_max,
        "stored_rsr": finite(row[RSR]),
        "mean_clipped_rank": float(rank),
        "mean_surprisal": float(surprisal),
        "num_tokens": len(tokens),
        "truncated": row[TRUNCATED],
    }


def _as_data(tokens: "Sequence[Token]", parts: "Sequence[Sentence]") -> dict:
    from rsr_trl.cli.summary import finite

    return {
        "tokens": [{**vars(token), "probability": token.probability} for token in tokens],
        "sentences": [{**vars(part), "rsr": finite(part.rsr), "text": _text(tokens, part)} for part in parts],
    }


def _text(tokens: "Sequence[Token]", part: "Sentence") -> str:
    return "".join(token.text for token in tokens[part.start : part.stop])


def _shortened(text: str, length: int) -> str:
    """The beginning of a text on one line, with nothing in it that acts on a terminal."""
    from rsr_trl.report.tokens import visible

    words = " ".join(text[: 4 * length].split())  # the text may be a megabyte
    return visible(words if len(words) <= length else f"{words[: length - 1]}…")


# --------------------------------------------------------------------------------------------------------- drawing


def _print(
    out: Console,
    facts: dict,
    tokens: "Sequence[Token]",
    parts: "Sequence[Sentence]",
    prompt: str,
    args: ShowArguments,
) -> None:
    _print_facts(out, facts, prompt)
    in_color = not out.no_color and out.color_system in ("256", "truecolor")  # 16 colours can't be told apart
    out.print(_legend(args.color_by, in_color))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("RSR", justify="right", no_wrap=True)
    table.add_column(f"of each sentence; in brackets if it has fewer than {FEW_TOKENS} tokens", overflow="fold")
    turn = 1
    for part in parts:
        if part.turn > turn:
            turn = part.turn
            table.add_row("", Rule(f"turn {turn}", style="dim", align="left"))
        inside = tokens[part.start : part.stop]
        text = Text.assemble(*(_drawn(token, args.color_by, in_color) for token in inside))
        text.rstrip()  # a new line begins anyway
        if not in_color and text.plain.startswith(" "):
            text = text[1:]  # the space between two sentences
        table.add_row(f"{part.rsr:,.2f}" if len(inside) >= FEW_TOKENS else f"({part.rsr:,.2f})", text)
    out.print(table)
    _print_most_surprising(out, tokens)
    _print_extremes(out, tokens, parts)


def _print_facts(out: Console, facts: dict, prompt: str) -> None:
    from rsr_trl.cli.summary import number

    title = (f"Row {facts['row']:,}: RSR {number(facts['rsr'])}", "bold")
    out.print(Text.assemble("\n", title, f" ({facts['direction']}), {facts['num_tokens']:,} tokens"))
    out.print(f"mean rank {facts['mean_clipped_rank']:,.2f} / mean surprisal {facts['mean_surprisal']:.2f} nats")
    stored = facts["stored_rsr"]
    if None not in (stored, facts["rsr"]) and abs(facts["rsr"] - stored) > 1e-3 * stored:
        out.print(f"Ranks are clipped at {facts['r_max']:,} here. The dataset's own rsr is {number(stored)}.")
    words = {True: "yes", False: "no"}
    known = {name: facts[name] for name in ("student", "teacher", "problem", "correct") if facts[name] is not None}
    told = [f"{name}: {_shortened(str(words.get(value, value)), 60)}" for name, value in known.items()]
    told += ["truncated: only its beginning is scored"] if facts["truncated"] else []
    if told:
        out.print(Text("; ".join(told)))
    if prompt:
        out.print(Text.assemble(("Prompt: ", "bold"), _shortened(prompt, PROMPT_CHARACTERS)))
    out.print()


def _style(step: int) -> str:
    background, foreground = RAMP[step]
    return f"{foreground} on {background}"


def _drawn(token: "Token", color_by: str, in_color: bool) -> Text:
    """A token with its colour or, where there are no colours, in brackets with its rank if it stands out."""
    step = bisect_right(STEPS[color_by], token.rank if color_by == "rank" else token.surprisal) - 1
    if in_color:
        return Text(token.shown, _style(step))
    if step < MARKED_STEP:
        return Text(token.shown)
    word = token.shown.strip() or token.shown
    before, after = token.shown.split(word, 1)
    return Text(f"{before}⟦{word}⟧{str(token.rank).translate(SUBSCRIPTS)}{after}")


def _legend(color_by: str, in_color: bool) -> Text:
    begins, what = STEPS[color_by], "surprisal in nats" if color_by == "surprisal" else "rank"
    if not in_color:
        first = f"{begins[MARKED_STEP]:g}"
        return Text(f"⟦word⟧₁₂: a token with a {what} of {first} or more. The small number is its rank.\n")
    if color_by == "rank":
        labels = ["1", "2", *(f"{low}-{high - 1}" for low, high in zip(begins[2:], begins[3:], strict=False))]
    else:
        labels = [f"{low:g}-{high:g}" for low, high in zip(begins, begins[1:], strict=False)]
    labels.append(f"{begins[-1]:g} or more")
    boxes = [part for step, label in enumerate(labels) for part in ((f" {label} ", _style(step)), " ")]
    return Text.assemble(f"Colour: {what}  ", *boxes, "\n")


def _print_most_surprising(out: Console, tokens: "Sequence[Token]") -> None:
    """The tokens of highest surprisal: what stands before them, and what the student would have said."""
    from rsr_trl.cli.summary import plain_table

    with_top1 = tokens[0].top1 is not None
    table = plain_table("after", "token", "rank", "prob.", "nats", *(["student says"] if with_top1 else []))
    for column, justify in ((0, "right"), (1, "left"), *([(5, "left")] if with_top1 else [])):
        table.columns[column].justify = justify
    for place in sorted(range(len(tokens)), key=lambda place: -tokens[place].surprisal)[:NUM_LISTED]:
        token = tokens[place]
        before = "".join(one.shown for one in tokens[max(0, place - BEFORE_CHARACTERS) : place])
        table.add_row(
            Text(before.replace("\n", "")[-BEFORE_CHARACTERS:], "dim"),
            Text(_in_line(token.shown), "bold"),
            f"{token.rank:,}",
            f"{token.probability:.1%}" if token.probability >= 0.001 else f"{token.probability:.0e}",
            f"{token.surprisal:.2f}",
            *([Text(_in_line(token.top1))] if with_top1 else []),
        )
    out.print(f"\n[bold]The most surprising of its {len(tokens):,} tokens[/] (␣ is a space)")
    out.print(table)


def _in_line(shown: str) -> str:
    text = shown.replace("\n", "").replace(" ", "␣")
    return text if len(text) <= TOKEN_CHARACTERS else f"{text[: TOKEN_CHARACTERS - 1]}…"


def _print_extremes(out: Console, tokens: "Sequence[Token]", parts: "Sequence[Sentence]") -> None:
    """The sentences that suit best and least: of a long trajectory they are hard to find."""
    parts = [part for part in parts if part.stop - part.start >= FEW_TOKENS]
    if len(parts) < 2:
        return
    for label, pick in (("Suits best", min), ("Suits least", max)):
        part = pick(parts, key=lambda part: part.rsr)
        text = _shortened(_text(tokens, part), PROMPT_CHARACTERS)
        out.print(Text.assemble((label, "bold"), f" (RSR {part.rsr:,.2f}): {text}"), overflow="ellipsis", no_wrap=True)
