"""
Show one trajectory of a dataset that was scored with --token_stats: per-token surprisal and per-sentence RSR. A lower
RSR suits the student better.
"""

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import ColumnArguments, DatasetArguments, JsonArguments, option, option_parser
from rsr_trl.cli.tables import Column, finish, print_table, say, without_bars
from rsr_trl.report.format import number, visible
from rsr_trl.rsr import DIRECTION, ERROR, RSR, TRUNCATED, RSRError


# Backgrounds of the levels in report/tokens.py, each with a foreground that has a contrast of at least 5 to it. They
# are viridis, whose lightness rises evenly, so that it can be read without seeing hues.
RAMP = (
    *(("#440154", "#ffffff"), ("#414487", "#ffffff"), ("#2a788e", "#ffffff")),
    *(("#22a884", "#000000"), ("#7ad151", "#000000"), ("#fde725", "#000000")),
)
MARKED_LEVEL = 4  # from this one on a token gets a mark where there are no colours
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
NUM_LISTED = 10  # most surprising tokens
FEW_TOKENS = 5  # a sentence of fewer says little by its ratio
PROMPT_CHARACTERS = 160
BEFORE_CHARACTERS = 24  # what stands before a listed token
TOKEN_CHARACTERS = 16


@dataclass(kw_only=True)
class ShowArguments(JsonArguments, ColumnArguments):
    """What to show, and how."""

    _argument_group_name = "show"

    row: int = option("Row of the dataset, counted from 0.")
    tokenizer: str | None = option(
        "The student's tokenizer: Hub id or folder; by default that of the student on the dataset's card.", None
    )
    color_by: Literal["surprisal", "rank"] = option("What token colours encode.", "surprisal")
    r_max: int = option("Clip ranks at this value.", 100)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DatasetArguments, ShowArguments), prog, __doc__)


def main(data_args: DatasetArguments, args: ShowArguments) -> None:
    from rsr_trl.cli.summary import finite
    from rsr_trl.data import card_facts
    from rsr_trl.report.images import images_of
    from rsr_trl.report.rows import TurnFinder, prompt_of
    from rsr_trl.report.tokens import check_token_columns, load_tokenizer, read_tokens, sentences
    from rsr_trl.scoring.rows import undecoded

    without_bars()
    dataset, source = data_args.load(), data_args.dataset_name
    if not 0 <= args.row < len(dataset):
        raise RSRError(f"There is no row {args.row}: {source!r} has {len(dataset):,} rows, counted from 0.")
    row = undecoded(dataset)[args.row]
    if RSR not in row:
        raise RSRError("The dataset has no scores. Score it first with `rsr score --token_stats`.")
    if row[RSR] is None:
        raise RSRError(f"Row {args.row} has no score: {row[ERROR]}.")
    check_token_columns(row)
    columns = args.columns(dataset)
    problem = None if columns.problem == "prompt" else columns.problem  # the prompt is shown anyway
    names = {"teacher": row.get(columns.teacher), "problem": row.get(problem), "correct": row.get(columns.correct)}
    tokenizer = load_tokenizer(source, args.tokenizer)
    tokens = read_tokens(row, tokenizer)
    parts = sentences(tokens, args.r_max, TurnFinder(tokenizer)(row))
    facts = _facts(row, tokens, args) | {"student": card_facts(source).get("student"), **names}
    lists = {
        "tokens": [{**vars(token), "probability": token.probability} for token in tokens],
        "sentences": [{**vars(part), "rsr": finite(part.rsr), "text": _text(tokens, part)} for part in parts],
    }

    images = [image.text for image in images_of(row)]
    lists |= {"images": images} if images else {}

    def show(_) -> None:
        # The picture is what was asked for, so it goes to standard output, as data does.
        out = Console(highlight=False)
        _show_facts(out, facts, prompt_of(row), images)
        show_sentences(out, tokens, parts, args.color_by)
        show_most_surprising(out, tokens)
        _show_extremes(out, tokens, parts)

    finish(args.json, facts | {name: finite(facts[name]) for name in ("rsr", "stored_rsr")} | lists, show)


def _facts(row: dict, tokens: list, args: ShowArguments) -> dict:
    """The scores of the row as a whole."""
    from rsr_trl.rsr import rsr_from_means, trajectory_means

    ranks, surprisals = [token.rank for token in tokens], [token.surprisal for token in tokens]
    rank, surprisal = (float(means[0]) for means in trajectory_means(ranks, surprisals, [len(tokens)], args.r_max))
    return {
        "row": args.row,
        "rsr": float(rsr_from_means(rank, surprisal)),
        "direction": DIRECTION,
        "r_max": args.r_max,
        "stored_rsr": row[RSR],
        "mean_clipped_rank": rank,
        "mean_surprisal": surprisal,
        "num_tokens": len(tokens),
        "truncated": row[TRUNCATED],
    }


def _text(tokens: list, part) -> str:
    return "".join(token.text for token in tokens[part.start : part.stop])


def _shortened(text: str, length: int) -> str:
    """The beginning of a text on one line, with nothing in it that acts on a terminal."""
    words = " ".join(text[: 4 * length].split())  # the text may be a megabyte
    return visible(words if len(words) <= length else f"{words[: length - 1]}…")


# --------------------------------------------------------------------------------------------------------- drawing


def _show_facts(out: Console, facts: dict, prompt: str, images: list[str]) -> None:
    from rsr_trl.report.format import short_name

    title = f"\nRow {facts['row']:,}: RSR {number(facts['rsr'], 3)}"
    say(out, f" ({facts['direction']}), {facts['num_tokens']:,} tokens", title)
    say(out, "mean rank {mean_clipped_rank:,.2f} / mean surprisal {mean_surprisal:,.2f} nats".format(**facts))
    stored = facts["stored_rsr"]
    if abs(facts["rsr"] - stored) > 1e-3 * stored:
        say(out, f"Ranks are clipped at {facts['r_max']:,} here. The dataset's own rsr is {number(stored, 3)}.")
    known = {name: facts[name] for name in ("student", "teacher", "problem", "correct") if facts[name] is not None}
    if "student" in known:
        known["student"] = short_name(known["student"])
    words = {name: ("no", "yes")[value] if isinstance(value, bool) else str(value) for name, value in known.items()}
    about = [f"{name}: {_shortened(text, 60)}" for name, text in words.items()]
    about += ["truncated: only the part before the cut is scored"] if facts["truncated"] else []
    if about:
        say(out, "; ".join(about))
    if prompt:
        say(out, _shortened(prompt, PROMPT_CHARACTERS), "Prompt: ")
    for place, image in enumerate(images, start=1):
        say(out, image, f"Image {place}: ")
    say(out)


def show_sentences(out: Console, tokens: list, parts: list, color_by: str) -> None:
    in_color = not out.no_color and out.color_system in ("256", "truecolor")  # 16 colours can't be told apart
    out.print(_legend(color_by, in_color))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("RSR", justify="right", no_wrap=True)
    table.add_column(f"of each sentence; in brackets if it has fewer than {FEW_TOKENS} tokens", overflow="fold")
    turn = 1
    for part in parts:
        if part.turn > turn:
            turn = part.turn
            table.add_row("", Rule(f"turn {turn}", style="dim", align="left"))
        inside = tokens[part.start : part.stop]
        text = Text.assemble(*(_drawn(token, color_by, in_color) for token in inside))
        text.rstrip()  # a new line begins anyway
        if not in_color and text.plain.startswith(" "):
            text = text[1:]  # the space between two sentences
        table.add_row(number(part.rsr) if len(inside) >= FEW_TOKENS else f"({number(part.rsr)})", text)
    out.print(table)


def _style(level: int) -> str:
    background, foreground = RAMP[level]
    return f"{foreground} on {background}"


def _drawn(token, color_by: str, in_color: bool) -> Text:
    """A token with its colour or, where there are no colours, in brackets with its rank if it stands out."""
    level = token.level(color_by)
    if in_color or level < MARKED_LEVEL:
        return Text(token.shown, _style(level) if in_color else "")
    word = token.shown.strip() or token.shown
    before, after = token.shown.split(word, 1)
    return Text(f"{before}⟦{word}⟧{str(token.rank).translate(SUBSCRIPTS)}{after}")


def _legend(color_by: str, in_color: bool) -> Text:
    from rsr_trl.report.tokens import LEVELS, level_names

    unit = "surprisal in nats" if color_by == "surprisal" else "rank"
    if not in_color:
        first = f"{LEVELS[color_by][MARKED_LEVEL]:g}"
        least = f"a surprisal of {first} nats" if color_by == "surprisal" else f"a rank of {first}"
        return Text(f"⟦word⟧₁₂: a token with {least} or more. The small number is its rank.\n")
    boxes = [part for level, name in enumerate(level_names(color_by)) for part in ((f" {name} ", _style(level)), " ")]
    return Text.assemble(f"Colour: {unit}  ", *boxes, "\n")


def show_most_surprising(out: Console, tokens: list, count: int = NUM_LISTED) -> None:
    """The tokens of highest surprisal: what stands before them, and what the student would have said."""

    def before(place: int) -> Text:
        text = "".join(one.shown for one in tokens[max(0, place - BEFORE_CHARACTERS) : place]).replace("\n", "")
        return Text(text[-BEFORE_CHARACTERS:].rjust(BEFORE_CHARACTERS), "dim")

    def probability(place: int) -> str:
        value = tokens[place].probability
        return f"{value:.1%}" if value >= 0.001 else f"{value:.0e}"

    columns = (
        Column("after", before, justify="right"),
        Column("token", lambda place: Text(_in_line(tokens[place].shown), "bold"), justify="left"),
        Column("rank", lambda place: tokens[place].rank),
        Column("prob.", probability),
        Column("nats", lambda place: tokens[place].surprisal),
        Column("student says", lambda place: Text(_in_line(tokens[place].top1)), tokens[0].top1 is not None, "left"),
    )
    places = sorted(range(len(tokens)), key=lambda place: -tokens[place].surprisal)[:count]
    say(out, " (␣ is a space)", f"\nThe most surprising of its {len(tokens):,} tokens")
    print_table(out, places, columns)


def _in_line(shown: str) -> str:
    text = shown.replace("\n", "").replace(" ", "␣")
    return text if len(text) <= TOKEN_CHARACTERS else f"{text[: TOKEN_CHARACTERS - 1]}…"


def _show_extremes(out: Console, tokens: list, parts: list) -> None:
    """The sentences that suit best and least: of a long trajectory they are hard to find."""
    parts = [part for part in parts if part.stop - part.start >= FEW_TOKENS]
    for label, pick in (("Suits best", min), ("Suits least", max)) if len(parts) > 1 else ():
        part = pick(parts, key=lambda part: part.rsr)
        text = f" (RSR {number(part.rsr)}): {_shortened(_text(tokens, part), PROMPT_CHARACTERS)}"
        say(out, text, label, overflow="ellipsis", no_wrap=True)
