"""Options that several commands share, as dataclasses for TRL's parser, and the parsing itself.

Each is declared once. Names are those of `trl sft` where it has them. TRL's own `ModelConfig` and `ScriptArguments`
aren't used for scoring: most of their options (LoRA, test split, streaming) would be accepted here and do nothing.
"""

import os
import re
import shlex
from argparse import SUPPRESS, Action, ArgumentError, HelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trl import TrlParser

from rsr_trl.cli.tables import without_bars
from rsr_trl.rsr import RSRError, did_you_mean


# The options that every command has come first where several may be meant.
COMMON = ("--model_name_or_path", "--dataset_name", "--output_dir")


def option(help: str, default: Any = MISSING, *aliases: str) -> Any:
    """A field that is an option of a command, required without a default. `aliases` are other spellings."""
    return field(default=default, metadata={"help": help, "aliases": list(aliases)})


@dataclass
class DatasetArguments:
    """Which dataset to read: the arguments of [`~rsr_trl.data.load`]."""

    _argument_group_name = "dataset"

    dataset_name: str = option(
        "A .jsonl, .json, .csv or .parquet file (may be compressed), a folder of them or from `save_to_disk`, or a "
        "Hub id."
    )
    dataset_config: str | None = option("Configuration of the dataset, if it has several.", None)
    dataset_train_split: str = option(
        "Split to read, as in `trl sft` (or --dataset_split). Slices such as 'train[:100]' work, except for "
        "`save_to_disk` folders.",
        "train",
        "--dataset_split",
    )

    @property
    def source(self) -> tuple[str, str | None, str]:
        return self.dataset_name, self.dataset_config, self.dataset_train_split

    def load(self, streaming: bool = False):
        from rsr_trl import data

        return data.load(*self.source, streaming=streaming)


@dataclass
class FormatArguments:
    """How raw columns become a format of SFTTrainer: the arguments of [`~rsr_trl.data.as_trl_format`]."""

    _argument_group_name = "columns"

    prompt_column: str | None = option("Column with the prompt, if not `prompt`; instruction,input joins two.", None)
    completion_column: str | None = option("Column with the trajectory, if not `completion`.", None)
    messages_column: str | None = option("Column with whole conversations, if not `messages`.", None)
    system_prompt: str | None = option("System message to prepend to every chat.", None)
    system_column: str | None = option("Column with each row's own system message, to prepend to its chat.", None)
    as_chat: bool = option(
        "Turn plain-text prompts and completions into user and assistant messages, so that the student's chat "
        "template is applied. Use it for instruct students.",
        False,
    )


@dataclass
class TeacherArguments:
    """Who wrote a trajectory."""

    teacher_column: str | None = option("Column with teacher names. Default: `teacher`; none for no column.", None)


PROBLEM_HELP = (
    "Column that identifies the problem (--problem_column and --group_column are the same option). Default: the first "
    "of problem_id, question_id, prompt_id, problem, question, prompt in which values repeat; none for no column."
)


@dataclass
class ColumnArguments(TeacherArguments):
    """Who wrote a trajectory, which problem it answers and whether it is right: for [`~rsr_trl.data.find_columns`]."""

    problem_column: str | None = option(PROBLEM_HELP, None, "--group_column")
    correctness_column: str | None = option(
        "Boolean column that says whether a trajectory is correct. Default: `correct` or `is_correct`; none for no "
        "column.",
        None,
    )

    def columns(self, dataset):
        """The [`~rsr_trl.data.Columns`] of this dataset: the same answer in every command."""
        from rsr_trl.data import Columns, find_columns

        return find_columns(dataset, Columns(self.teacher_column, self.problem_column, self.correctness_column))


@dataclass
class ScoreArguments:
    """What orders trajectories."""

    score: str = option("Score to rank by: a score in the dataset or any numeric column.", "rsr")
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

    output_dir: str = option("Output folder; must not exist or be empty.")
    overwrite: bool = option(
        "Replace the output of an earlier run (rsr score: also scores that the dataset already has).", False
    )


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
    device: str | None = option("Device, such as cuda:1 or cpu. Default: the best available.", None)
    device_map: str | None = option("Split the student across devices, such as `auto`.", None)
    attn_implementation: str | None = option("Attention implementation, such as flash_attention_2.", None)
    load_in_8bit: bool = option("Load the student in 8 bits (needs bitsandbytes).", False)
    load_in_4bit: bool = option("Load the student in 4 bits (needs bitsandbytes).", False)
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("4-bit quantization type.", "nf4")
    use_bnb_nested_quant: bool = option("Quantize the 4-bit constants too.", False)
    max_length: int | None = option(
        "Truncate examples to this many tokens. Default: 32768, or the student's positions if fewer.", None
    )
    r_max: int = option("Clip ranks at this value (the paper's is 100).", 100)
    max_batch_tokens: int | None = option("Tokens per batch, including padding. Lower it if memory runs out.", None)
    share_prefixes: bool = option("Read what several trajectories begin with only once.", True)
    max_prefix_tokens: int | None = option(
        "Longest prefix to share; it stays in memory. Default: bounded by the memory that batches take.", None
    )
    vllm_server_url: str | None = option(
        "Ask the vLLM server at this address, such as http://localhost:8000, instead of loading the student "
        "(docs/scale.md).",
        None,
    )
    vllm_served_model_name: str | None = option("What that server calls the student, if not by its name here.", None)
    vllm_concurrency: int = option("Requests in flight to that server.", 32)
    token_stats: bool = option("Also store the rank and surprisal of every token.", False)
    scores: str | None = option(
        "Other scores to add, such as surprisal,rank,entropy; `all` for every score available from the same pass "
        "(see docs/scores.md).",
        None,
    )
    assistant_only_loss: bool = option("Render chats as `trl sft --assistant_only_loss` does.", False)
    chat_template_path: str | None = option(
        "Chat template to use instead of the student's own, as in `trl sft`: a .jinja file, or the folder or Hub id "
        "of a tokenizer.",
        None,
    )

    def scorer(self, overwrite: bool = False):
        """The [`RSRScorer`] of this student. `overwrite` replaces scores that a dataset has already."""
        import torch

        from rsr_trl.scoring.scorer import RSRScorer

        device = self.device
        loads_here = self.device_map is None and self.vllm_server_url is None
        if device is None and loads_here and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"  # a GPU for each process
        check_student_exists(self.model_name_or_path)
        same = ("device_map", "max_length", "dtype", "attn_implementation", "r_max", "token_stats", "max_batch_tokens")
        same += ("assistant_only_loss", "trust_remote_code", "chat_template_path", "share_prefixes")
        same += ("max_prefix_tokens", "gguf_file")
        return RSRScorer(
            self.model_name_or_path,
            revision=self.model_revision,
            quantization_config=self._quantization_config(),
            device=device,
            scores=None if self.scores is None else [name.strip() for name in self.scores.split(",")],
            overwrite=overwrite,
            engine=self._engine(),
            **{name: getattr(self, name) for name in same},
        )

    def _engine(self):
        """The vLLM server, where one is named."""
        if self.vllm_server_url is None:
            if self.vllm_served_model_name is not None:
                raise RSRError("--vllm_served_model_name needs --vllm_server_url.")
            return None
        from rsr_trl.integrations.vllm import VLLMServer

        return VLLMServer(self.vllm_server_url, self.vllm_served_model_name, self.vllm_concurrency)

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


class _Parser(TrlParser):
    """TRL's parser with errors that say what was meant, by the spelling of an option that `--help` shows."""

    def error(self, message: str) -> None:
        super().error(re.sub(r"^argument (--\w+)\S*", r"\1", message))

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            meant = did_you_mean(str(value), choices)
            raise ArgumentError(action, f"{str(value)!r} is none of {', '.join(choices)}.{meant}")


def option_parser(dataclass_types: Sequence[type], prog: str | None, description: str) -> TrlParser:
    """TRL's parser over `dataclass_types`, in which a shortened option is an error like any other misspelt one."""
    parser = _Parser(
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
    argv = [word for item in argv for word in (item.split("=", 1) if item.startswith("--config=") else [item])]
    config = {}
    if "--config" in argv:
        place = argv.index("--config")
        if place + 1 == len(argv):
            parser.error("--config needs a file.")
        config = _read_config(parser, argv[place + 1])
        argv = argv[:place] + argv[place + 2 :]
    # Before anything else is checked: "--model_name_or_path is required" doesn't help who has misspelt it.
    known = parser._option_string_actions
    _refuse(parser, "", [word for word in argv if word.startswith("--") and word.split("=")[0] not in known])
    _refuse(parser, " in the config file", parser.set_defaults_with_config(**config)[::2])
    try:
        *values, left = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except ValueError as error:  # of the dataclasses of TRL and transformers, about options that don't go together
        raise RSRError(str(error)) from error
    _refuse(parser, "", left)
    if any(vars(value).get(name) for value in values for name in ("json", "csv")):
        without_bars()
    return tuple(values)


def _read_config(parser: TrlParser, path: str) -> dict:
    """The options in a YAML file, by the parser's names for them; `env` goes to the environment, as in TRL."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {path}: {error.strerror}.")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"--config {path} isn't valid YAML: {error}")
    if not isinstance(config, dict):
        parser.error(f"--config {path} must hold options, one per line, such as `output_dir: scored`.")
    os.environ.update({name: str(value) for name, value in (config.pop("env", None) or {}).items()})
    values = {}
    for name, value in config.items():
        action = parser._option_string_actions.get(f"--{name}")
        if action is not None:
            name, value = action.dest, _as_on_the_line(action, value)
            if value is not None:
                try:
                    parser._check_value(action, value)
                except ArgumentError as error:
                    parser.error(str(error))
        values[name] = value
    return values


def _as_on_the_line(action: Action, value: Any) -> Any:
    """A value of a YAML file where the command line has a text: lists with commas, mappings as `name:value` pairs."""
    if value is False and "no" in (action.default, *(action.choices or ())):
        return "no"  # which YAML takes for a truth value
    if action.nargs == "+":
        return value if isinstance(value, list) else [value]
    if action.type is str and isinstance(value, dict):
        value = [f"{name}:{one}" for name, one in value.items()]
    if action.type is str and isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _refuse(parser: TrlParser, where: str, words: list[str]) -> None:
    """End the process with a usage error if there are `words` that the parser doesn't know."""
    options = parser._option_string_actions
    known = [name[2:] for name in (*filter(options.get, COMMON), *options)]
    hints = []
    for word in words:
        meant = did_you_mean(word.split("=")[0][2:], known) if word.startswith("--") else ""
        hints.append(f"{word} ({meant[1:].replace('Did you mean ', 'did you mean --')})" if meant else word)
    if hints:
        parser.error(f"unknown option{where}: {', '.join(hints)}")


def as_options(text: str, parser: TrlParser) -> str:
    """
    A message for Python, where arguments are `name=value`, in the words of the command line: `--name value`. What it
    says of Python alone, in brackets, goes.
    """
    names = {spelling[2:] for spelling in parser._option_string_actions}

    def option_of(match: re.Match) -> str:
        name, value = match[1], match[2]
        if name not in names or ("_" not in name and value is None):
            return match[0]
        if value in (None, "True"):
            return f"--{name}"
        return f"--{name} {shlex.quote(value[1:-1] if value[0] in QUOTES else value)}"

    text = re.sub(r" \((?:in )?Python: (?:[^()]|\([^()]*\))*\)", "", text)
    return re.sub(_ARGUMENT, option_of, text)


QUOTES = "'\""
# A name by itself or with its value, but not inside quotes or a dotted name, nor as a function that is called.
_ARGUMENT = re.compile(r"""(?<![\w\-.'"`/])([a-z]\w*)(?:=('[^']*'|"[^"]*"|[\w/+-]+(?:[.,]\w+)*))?(?![\w='"`(/])""")
