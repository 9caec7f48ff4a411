"""Names and Arrow types of the columns that scoring adds to a dataset: the contract between scoring and its readers.

A trajectory with nothing to score has null in the float columns, 0 in `rsr_num_tokens` and its reason in `rsr_error`.
"""

import pyarrow as pa


RSR = "rsr"  # Eq. 7; lower suits the student better
MEAN_CLIPPED_RANK = "rsr_mean_clipped_rank"
MEAN_SURPRISAL = "rsr_mean_surprisal"  # nats
NUM_TOKENS = "rsr_num_tokens"  # tokens that were scored
TRUNCATED = "rsr_truncated"
ERROR = "rsr_error"  # null when fine
STUDENT = "rsr_student"  # fingerprint of weights, tokenizer, template and settings
TOKEN_IDS = "rsr_token_ids"
TOKEN_RANKS = "rsr_token_ranks"  # not clipped
TOKEN_SURPRISALS = "rsr_token_surprisals"  # nats
TOKEN_TOP1 = "rsr_token_top1"  # the student's own most likely token there

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


def score_schema(token_stats: bool = False) -> dict[str, pa.DataType]:
    """Columns that a scoring pass adds, in order, with their Arrow types."""
    return SCORE_COLUMNS | TOKEN_COLUMNS if token_stats else dict(SCORE_COLUMNS)
