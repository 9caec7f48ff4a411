"""Reading trajectories: every token coloured by surprisal and by rank, and the RSR of each sentence."""

from collections.abc import Mapping

import numpy as np

from rsr_trl.report.format import prose, visible
from rsr_trl.report.images import images_of
from rsr_trl.report.material import Material, Missing
from rsr_trl.report.rows import prompt_of
from rsr_trl.report.tokens import TOKEN_STATISTICS, Token, level_names, read_tokens, rsr_of, sentences
from rsr_trl.rsr import ERROR, RSR, TOKEN_TOP1
from rsr_trl.selection.choose import choose_rows


MAX_TOKENS = 24_000  # on the whole page
PROMPT_LENGTH = 1500


def view(material: Material) -> dict | Missing:
    if (missing := unreadable(material)) is not None:
        return missing
    rows = _rows(material)
    limit = MAX_TOKENS * 2 // 3 // len(rows)  # the rest is for the trajectories of one problem
    return {
        "trajectories": [_trajectory(material, row, why, limit) for row, why in rows.items()],
        "has_top1": TOKEN_TOP1 in material.dataset.column_names,
        "surprisal_levels": level_names("surprisal"),
        "rank_levels": level_names("rank"),
    }


def unreadable(material: Material) -> Missing | None:
    """Why tokens can't be read."""
    if any(name not in material.dataset.column_names for name in TOKEN_STATISTICS):
        why = "The dataset has no token statistics."
        return Missing(why, "To read tokens, score it with:", "rsr score --token_stats ...")
    if material.tokenizer is None:
        return Missing(material.no_tokenizer, "Then tokens can be read.", "rsr report --tokenizer STUDENT ...")
    return None


def _rows(material: Material) -> dict[int, str]:
    """Rows to show -> why, in the order in which they are shown."""
    order = choose_rows(material.rsr, material.table.tokens, threshold=np.inf).tolist()
    shown = {order[-1]: "least suitable", order[(len(order) - 1) // 2]: "median", order[0]: "most suitable"}
    shown = dict(reversed(shown.items()))
    for row in material.rows:
        shown[row] = f"{shown[row]}, asked for" if row in shown else "asked for"
    return shown


def _trajectory(material: Material, row: int, why: str, limit: int) -> dict:
    values = material.values(row)
    return material.row(row) | {
        "why": why,
        "prompt": prose(prompt_of(values), PROMPT_LENGTH),
        "images": images_of(values, thumbnails=True),
        "heatmap": heatmap(material, values, limit),
        "error": values.get(ERROR),
    }


def heatmap(material: Material, values: Mapping, limit: int) -> dict:
    """
    The first `limit` tokens of a row by sentences: `rsr` of each, `share` (width of its bar: half is the RSR of the
    trajectory), `turn` and `tokens`.
    """
    tokens = read_tokens(values, material.tokenizer)
    whole, shown = rsr_of(tokens, material.r_max), []
    for sentence in sentences(tokens, material.r_max, material.turns(values)):
        if sentence.start >= limit:
            break
        share = min(1.0, sentence.rsr / whole / 2) if np.isfinite(sentence.rsr) and whole else 1.0
        part = tokens[sentence.start : min(sentence.stop, limit)]
        shown.append(
            {"rsr": sentence.rsr, "share": share, "turn": sentence.turn, "tokens": [_shown(token) for token in part]}
        )
    stored = values[RSR]
    return {
        "sentences": shown,
        "num_tokens": len(tokens),
        "more": max(0, len(tokens) - limit),
        # Surprisals of tokens are stored in float32, so their sum differs a little.
        "other_r_max": bool(tokens) and stored is not None and not np.isclose(whole, stored, rtol=1e-3),
    }


def _shown(token: Token) -> dict:
    """What the student would have said is told where it is something else."""
    own = token.top1 if token.rank > 1 and token.top1 != visible(token.text) else None
    levels = f"a{token.level('surprisal')} b{token.level('rank')}"
    return {"text": token.shown, "rank": token.rank, "surprisal": token.surprisal, "top1": own, "levels": levels}
