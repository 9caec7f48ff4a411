"""Options that several commands share, as dataclasses for TRL's parser, and the parsing itself.

Names are those of `trl sft` where it has them. TRL's own `ModelConfig` and `ScriptArguments` aren't used for scoring:
most of their options (LoRA, test split, streaming) would be accepted here and do nothing.
"""

import difflib
import os
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trl import TrlParser


if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from rsr_trl.scoring.scorer import RSRScorer


@dataclass
class DatasetArguments:
    """
    Which dataset to read: the arguments of [`~rsr_trl.data.load`].

    Args:
        dataset_name (`str`): File, folder or Hub id.
        dataset_config (`str`, *optional*): Configuration of a dataset with several.
        dataset_split (`str`, *optional*, defaults to `"train"`): Split to read.
    """

    _argument_group_name = "dataset"

    dataset_name: str = field(
        metadata={
            "help": "A .jsonl, .json, .csv or .parquet file, a folder of them, a folder from `save_to_disk`, or the "
            "id of a dataset on the Hub."
        }
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, if it has several."}
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split to read; slices such as 'train[:100]' work for files and Hub ids."}
    )


@dataclass
class FormatArguments:
    """
    How raw columns become a format of SFTTrainer: the arguments of [`~rsr_trl.data.as_trl_format`].

    Args:
        prompt_column (`str`, *optional*): Column with the prompt.
        completion_column (`str`, *optional*): Column with the trajectory.
        messages_column (`str`, *optional*): Column with whole conversations, instead of the other two.
        system_prompt (`str`, *optional*): System message to put before every chat.
        as_chat (`bool`, *optional*, defaults to `False`): Whether to wrap plain text into chat messages.
    """

    _argument_group_name = "columns"

    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the prompt, if it isn't called `prompt`."}
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "Column with the trajectory, if it isn't called `completion`."}
    )
    messages_column: str | None = field(
        default=None, metadata={"help": "Column with whole conversations, if it isn't called `messages`."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message to put before every chat."})
    as_chat: bool = field(
        default=False,
        metadata={
            "help": "Wrap a plain-text prompt and completion into a user and an assistant message, so that an "
            "instruct student sees its chat template."
        },
    )


@dataclass
class StudentArguments:
    """
    Which student scores, and how: the arguments of [`RSRScorer`].

    Args:
        model_name_or_path (`str`): Student: Hub id or folder.
        model_revision (`str`, *optional*): Branch, tag or commit of the student.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code that comes with the student.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype to load the student in; `"auto"` takes its weights' own.
        device (`str`, *optional*): Device, such as `"cuda:1"`; the best there is by default.
        device_map (`str`, *optional*): How to spread a student over several devices, such as `"auto"`.
        attn_implementation (`str`, *optional*): Attention implementation, as in `trl sft`.
        load_in_8bit, load_in_4bit, bnb_4bit_quant_type, use_bnb_nested_quant: Quantization, as in `trl sft`.
        max_length (`int`, *optional*): Longer examples are cut.
        r_max (`int`, *optional*, defaults to `100`): Ranks are clipped here.
        max_batch_tokens (`int`, *optional*): Tokens of a batch, padding included.
        token_stats (`bool`, *optional*, defaults to `False`): Whether to keep rank and surprisal of every token.
        scores (`str`, *optional*): Names of other scores to add, with commas between them, or `all`.
        assistant_only_loss (`bool`, *optional*, defaults to `False`): As in `SFTConfig`.
    """

    _argument_group_name = "student"

    model_name_or_path: str = field(metadata={"help": "The student: Hub id or folder."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the student."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the student."})
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "Dtype to load the student in; `auto` takes that of its weights."}
    )
    device: str | None = field(default=None, metadata={"help": "Such as cuda:1 or cpu; by default the best there is."})
    device_map: str | None = field(
        default=None, metadata={"help": "Spread the student over several devices; `auto` decides by itself."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation, such as flash_attention_2."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the student in 8 bits (needs bitsandbytes)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the student in 4 bits (needs bitsandbytes)."})
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata={"help": "4-bit quantization type."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the 4-bit constants too."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Cut longer examples, in tokens; by default 32768, or the student's positions if fewer."},
    )
    r_max: int = field(default=100, metadata={"help": "Clip ranks at this value (the paper's is 100)."})
    max_batch_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a batch, padding included: lower it if memory runs out."}
    )
    token_stats: bool = field(default=False, metadata={"help": "Keep rank and surprisal of every token."})
    scores: str | None = field(
        default=None,
        metadata={
            "help": "Other scores to add as columns, such as surprisal,rank,entropy; `all` that the same pass gives "
            "(docs/scores.md lists them)."
        },
    )
    assistant_only_loss: bool = field(
        default=False, metadata={"help": "Render chats as SFTTrainer does with assistant_only_loss=True."}
    )

    def scorer(self, overwrite: bool = False) -> "RSRScorer":
        """Load the student. `overwrite` replaces scores that a dataset has already."""
        import torch

        from rsr_trl.data import is_written_as_path
        from rsr_trl.scoring.scorer import RSRScorer

        device = self.device
        if device is None and self.device_map is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"  # a GPU for each process
        if is_written_as_path(self.model_name_or_path) and not Path(self.model_name_or_path).exists():
            raise ValueError(f"There is no folder {self.model_name_or_path!r} (model_name_or_path).")
        return RSRScorer(
            self.model_name_or_path,
            revision=self.model_revision,
            quantization_config=self._quantization_config(),
            device_map=self.device_map,
            max_length=self.max_length,
            dtype=self.dtype,
            device=device,
            attn_implementation=self.attn_implementation,
            r_max=self.r_max,
            token_stats=self.token_stats,
            scores=None if self.scores is None else [name.strip() for name in self.scores.split(",")],
            max_batch_tokens=self.max_batch_tokens,
            assistant_only_loss=self.assistant_only_loss,
            overwrite=overwrite,
            trust_remote_code=self.trust_remote_code,
        )

    def _quantization_config(self) -> "BitsAndBytesConfig | None":
        """The configuration that `trl sft` would train the student with, given the same options."""
        if not (self.load_in_4bit or self.load_in_8bit):
            return None
        if self.load_in_4bit and self.dtype == "auto":
            raise ValueError("--load_in_4bit computes in --dtype, so name one: --dtype bfloat16, for example.")
        from trl import ModelConfig, get_quantization_config

        return get_quantization_config(
            ModelConfig(
                dtype=self.dtype,
                load_in_8bit=self.load_in_8bit,
                load_in_4bit=self.load_in_4bit,
                bnb_4bit_quant_type=self.bnb_4bit_quant_type,
                use_bnb_nested_quant=self.use_bnb_nested_quant,
            )
        )


@dataclass
class OutputArguments:
    """
    Where the result goes and how it is told.

    Args:
        output_dir (`str`): Folder to make.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace earlier results.
        teacher_column (`str`, *optional*): Column with the teacher's name; `teacher` where there is one.
        json (`bool`, *optional*, defaults to `False`): Whether to print the summary as JSON on standard output.
    """

    _argument_group_name = "output"

    output_dir: str = field(metadata={"help": "Folder to make; it is absent or empty."})
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace what an earlier run wrote there (rsr score: scores in the dataset too)."},
    )
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    json: bool = field(
        default=False, metadata={"help": "Print the summary as one JSON object on standard output, and nothing else."}
    )


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
    return tuple(values)


def _refuse(parser: TrlParser, where: str, words: list[str]) -> None:
    """End the process with a usage error if there are `words` that the parser doesn't know."""
    hints = []
    for word in words:
        near = difflib.get_close_matches(word.split("=")[0], parser._option_string_actions, n=1)
        hints.append(f"{word} (did you mean {near[0]}?)" if near else word)
    if hints:
        parser.error(f"unknown option{where}: {', '.join(hints)}")
