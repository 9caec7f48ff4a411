"""Options that several commands share, as dataclasses for TRL's parser, and the parsing itself.

Each is declared once. Names are those of `trl sft` where it has them. TRL's own `ModelConfig` and `ScriptArguments`
aren't used for scoring: most of their options (LoRA, test split, streaming) would be accepted here and do nothing.
"""

import difflib
import os
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trl import TrlParser

from rsr_trl.cli.tables import without_bars
from rsr_trl.rsr import RSRError


def option(help: str, default: Any = MISSING) -> Any:
    """A field that is an option of a command, required without a default."""
    return field(default=default, metadata={"help": help})


@dataclass
class DatasetArguments:
    """Which dataset to read: the arguments of [`~rsr_trl.data.load`]."""

    _argument_group_name = "dataset"

    dataset_name: str = option(
        "A .jsonl, .json, .csv or .parquet file (or in .gz), a folder of them or from `save_to_disk`, or a dataset's "
        "Hub id."
    )
    dataset_config: str | None = option("Configuration of the dataset, if it has several.", None)
    dataset_split: str = option("Split to read; slices such as 'train[:100]' work, except of `save_to_disk`.", "train")

    @property
    def source(self) -> tuple[str, str | None, str]:
        return self.dataset_name, self.dataset_config, self.dataset_split

    def load(self, streaming: bool = False):
        from rsr_trl import data

        return data.load(*self.source, streaming=streaming)


@dataclass
class FormatArguments:
    """How raw columns become a format of SFTTrainer: the arguments of [`~rsr_trl.data.as_trl_format`]."""

    _argument_group_name = "columns"

    prompt_column: str | None = option(
        "Column with the prompt, if not `prompt`; instruction,input joins the texts of two.", None
    )
    completion_column: str | None = option("Column with the trajectory, if not `completion`.", None)
    messages_column: str | None = option("Column with whole conversations, if not `messages`.", None)
    system_prompt: str | None = option("System message to put before every chat.", None)
    system_column: str | None = option("Column with each row's own system message, to put before its chat.", None)
    as_chat: bool = option(
        "Wrap a plain-text prompt and completion into user and assistant messages, for an instruct student.", False
    )


@dataclass
class TeacherArguments:
    """Who wrote a trajectory."""

    teacher_column: str | None = option("Column with teacher names; by default `teacher`; none: use no column.", None)


@dataclass
class ColumnArguments(TeacherArguments):
    """Who wrote a trajectory, which problem it answers and whether it is right: for [`~rsr_trl.data.find_columns`]."""

    problem_column: str | None = option(
        "Column that names the problem; by default problem_id, question_id, prompt_id, problem, question or prompt, "
        "the first in which values repeat; none: use no column.",
        None,
    )
    correctness_column: str | None = option(
        "Boolean column; by default `correct` or `is_correct`; none: use no column.", None
    )

    def columns(self, dataset):
        """The [`~rsr_trl.data.Columns`] of this dataset: the same answer in every command."""
        from rsr_trl.data import Columns, find_columns

        return find_columns(dataset, Columns(self.teacher_column, self.problem_column, self.correctness_column))


@dataclass
class ScoreArguments:
    """What orders trajectories."""

    score: str = option("Score to order by: one in the dataset, or a numeric column.", "rsr")
    prefer: Literal["low", "high"] | None = option(
        "Whether low or high is better. Defaults to the score's own direction (RSR: low); required for your own "
        "columns.",
        None,
    )


@dataclass
class JsonArguments:
    """Whether a program reads the result."""

    _argument_group_name = "output"

    json: bool = option("Print only a JSON summary, on standard output.", False)


@dataclass(kw_only=True)
class OutputArguments(TeacherArguments, JsonArguments):
    """Where a dataset that is made goes, and how it is summarised."""

    _argument_group_name = "output"

    output_dir: str = option("Output folder; it must not exist yet or must be empty.")
    overwrite: bool = option("Replace the output of an earlier run (rsr score: scores in the dataset too).", False)


GGUF_FILE = (  # of the two classes below
    "A .gguf file in the student's folder or repository, to read weights, tokenizer and chat template from; naming "
    "folder/file.gguf as the student is the same.",
    None,
)


@dataclass
class GgufArguments:
    """What `trl sft`'s options lack of [`StudentArguments`]."""

    _argument_group_name = "student"

    gguf_file: str | None = option(*GGUF_FILE)


@dataclass
class StudentArguments:
    """Which student scores, and how: the arguments of [`RSRScorer`]."""

    _argument_group_name = "student"

    model_name_or_path: str = option("The student: Hub id, folder or .gguf file.")
    gguf_file: str | None = option(*GGUF_FILE)
    model_revision: str | None = option("Branch, tag or commit of the student.", None)
    trust_remote_code: bool = option("Run code that comes with the student.", False)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "Dtype to load the student in; `auto` uses the checkpoint's dtype.", "auto"
    )
    device: str | None = option("Device, such as cuda:1 or cpu; by default the best available.", None)
    device_map: str | None = option("Spread the student over several devices; `auto` chooses how.", None)
    attn_implementation: str | None = option("Attention implementation, such as flash_attention_2.", None)
    load_in_8bit: bool = option("Load the student in 8 bits (needs bitsandbytes).", False)
    load_in_4bit: bool = option("Load the student in 4 bits (needs bitsandbytes).", False)
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("4-bit quantization type.", "nf4")
    use_bnb_nested_quant: bool = option("Quantize the 4-bit constants too.", False)
    max_length: int | None = option(
        "Truncate longer examples to this many tokens; by default 32768, or the student's positions if fewer.", None
    )
    r_max: int = option("Clip ranks at this value (the paper's is 100).", 100)
    max_batch_tokens: int | None = option("Tokens per batch, padding included: fewer need less memory.", None)
    token_stats: bool = option("Keep rank and surprisal of every token.", False)
    scores: str | None = option(
        "Other scores to add, such as surprisal,rank,entropy; `all` for every score available from the same pass "
        "(see docs/scores.md).",
        None,
    )
    assistant_only_loss: bool = option("Render chats as SFTTrainer does with assistant_only_loss=True.", False)
    chat_template_path: str | None = option(
        "Chat template to use instead of the student's own, as in `trl sft`: a .jinja file, or a tokenizer's folder "
        "or Hub id.",
        None,
    )

    def scorer(self, overwrite: bool = False):
        """The [`RSRScorer`] of this student. `overwrite` replaces scores that a dataset has already."""
        import torch

        from rsr_trl.scoring.scorer import RSRScorer

        device = self.device
        if device is None and self.device_map is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"  # a GPU for each process
        check_student_exists(self.model_name_or_path)
        same = ("device_map", "max_length", "dtype", "attn_implementation", "r_max", "token_stats", "max_batch_tokens")
        same += ("assistant_only_loss", "trust_remote_code", "chat_template_path", "gguf_file")
        return RSRScorer(
            self.model_name_or_path,
            revision=self.model_revision,
            quantization_config=self._quantization_config(),
            device=device,
            scores=None if self.scores is None else [name.strip() for name in self.scores.split(",")],
            overwrite=overwrite,
            **{name: getattr(self, name) for name in same},
        )

    def _quantization_config(self):
        """The configuration that `trl sft` would train the student with, given the same options."""
        if not (self.load_in_4bit or self.load_in_8bit):
            return None
        if self.load_in_4bit and self.dtype == "auto":
            raise RSRError("--load_in_4bit computes in --dtype, so name one: --dtype bfloat16, for example.")
        from trl import ModelConfig, get_quantization_config

        same = ("dtype", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
        return get_quantization_config(ModelConfig(**{name: getattr(self, name) for name in same}))


def student_to_train(model_args, training_args, gguf_args: GgufArguments) -> dict:
    """The student as SFTTrainer takes it, from `trl sft`'s options; what is about loading goes to `training_args`."""
    from trl import get_peft_config, get_quantization_config

    if model_args.model_name_or_path is None:
        raise RSRError("--model_name_or_path is required: the student to train.")
    check_student_exists(model_args.model_name_or_path)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **({"gguf_file": gguf_args.gguf_file} if gguf_args.gguf_file else {}),
        **(training_args.model_init_kwargs or {}),
    }
    return {
        "model": model_args.model_name_or_path,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


def check_student_exists(name: str) -> None:
    """Raise for a folder that isn't there, before it is taken for a Hub id."""
    from rsr_trl.data import is_written_as_path

    name = os.path.dirname(name) or "." if name.endswith(".gguf") else name
    if is_written_as_path(name) and not Path(name).exists():
        raise RSRError(f"There is no folder {name!r} (--model_name_or_path).")


class _HelpFormatter(HelpFormatter):
    """One spelling of each option, and its default only where it says something."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        return name if action.nargs == "?" else f"{name} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action: Action) -> str:
        silent = action.required or action.default in (None, False, SUPPRESS)
        return action.help if silent else f"{action.help} (default: %(default)s)"


def option_parser(dataclass_types: Sequence[type], prog: str | None, description: str) -> TrlParser:
    """TRL's parser over `dataclass_types`, in which a shortened option is an error like any other misspelt one."""
    parser = TrlParser(
        dataclass_types,
        prog=prog,
        description=description,
        epilog="`--config file.yaml` reads options from a file; those on the command line win.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    required = [f"{action.option_strings[0]} {action.dest.upper()}" for action in parser._actions if action.required]
    parser.usage = " ".join(["%(prog)s", *required, "[options]"])
    return parser


def parse(parser: TrlParser, argv: Sequence[str]) -> tuple:
    """
    Parse `argv`, and the file of `--config` if there is one, into the parser's dataclasses. The command line wins.

    An option that doesn't exist, on the command line or in the file, ends the process with what was probably meant.
    Where a program reads the output, progress bars are switched off.
    """
    # TrlParser knows `--config FILE` only as two words.
    argv = [word for item in argv for word in (item.split("=", 1) if item.startswith("--config=") else [item])]
    if argv and argv[-1] == "--config":
        parser.error("--config needs a file.")
    # Before anything else is checked: "--model_name_or_path is required" doesn't help who has misspelt it.
    known = {"--config", *parser._option_string_actions}
    _refuse(parser, "", [word for word in argv if word.startswith("--") and word.split("=")[0] not in known])
    *values, in_file, on_line = parser.parse_args_and_config(
        argv, return_remaining_strings=True, separate_remaining_strings=True
    )
    _refuse(parser, " in the config file", in_file[::2])
    _refuse(parser, "", on_line)
    if any(vars(value).get(name) for value in values for name in ("json", "csv")):
        without_bars()
    return tuple(values)


def _refuse(parser: TrlParser, where: str, words: list[str]) -> None:
    """End the process with a usage error if there are `words` that the parser doesn't know."""
    hints = []
    for word in words:
        near = difflib.get_close_matches(word.split("=")[0], parser._option_string_actions, n=1)
        hints.append(f"{word} (did you mean {near[0]}?)" if near else word)
    if hints:
        parser.error(f"unknown option{where}: {', '.join(hints)}")
