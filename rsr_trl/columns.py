"""Names and Arrow types of the columns that scoring adds to a dataset: the contract between scoring and its readers.

A trajectory with nothing to score has null in the float columns, 0 in `rsr_num_tokens` and its reason in `rsr_error`.
"""

from collections.abc import Iterable

import pyarrow as pa


RSR = "rsr"  # Eq. 7; lower suits the student better
MEAN_CLIPPED_RANK = "rsr_mean_clipped_rank"
MEAN_SURPRISAL = "rsr_mean_surprisal"  # nats
NUM_TOKENS = "rsr_num_tokens"  # tokens that were scored
TRUNCATED = "rsr_truncated"
ERROR = "rsr_error"  # null when fine
STUDENT = "rsr_student"  # fingerprint of weights, tokenizer, template and settings
STEP_SHARE = "rsr_step_share"  # share of the tokens that begin a reasoning step; only with the score casl
TOKEN_IDS = "rsr_token_ids"
TOKEN_RANKS = "rsr_token_ranks"  # not clipped
TOKEN_SURPRISALS = "rsr_token_surprisals"  # nats
TOKEN_TOP1 = "rsr_token_top1"  # the student's own most likely token there

SCORE_PREFIX = "score_"  # of the columns of other scores, which RSRScorer(scores=...) adds

SCORE_COLUMNS = {
    RSR: pa.float64(),
    MEAN_CLIPPED_RANK: pa.float64(),
    MEAN_SURPRISAL: pa.float64(),
    NUM_TOKENS: pa.int64(),
    TRUNCATED: pa.bool_(),
    ERROR: pa.string(),
    STUDENT: pa.string(),
}
TOKEN_COLUMNS = {
    TOKEN_IDS: pa.list_(pa.int32()),
    TOKEN_RANKS: pa.list_(pa.int32()),
    TOKEN_SURPRISALS: pa.list_(pa.float32()),
    TOKEN_TOP1: pa.list_(pa.int32()),
}


def score_schema(token_stats: bool = False, others: Iterable[str] = ()) -> dict[str, pa.DataType]:
    """Columns that a scoring pass adds, in order, with their Arrow types. `others` names columns of other scores."""
    schema = SCORE_COLUMNS | dict.fromkeys(others, pa.float64())
    return schema | TOKEN_COLUMNS if token_stats else schema
