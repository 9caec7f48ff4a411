"""SFTTrainer that chooses and orders its examples by live scores of the student it trains.

Here is only what has to be in a subclass of SFTTrainer: loop and loss are SFTTrainer's. `live_scores.py` decides when
to score, `live_student.py` how, `sampler.py` the order.
"""

import functools
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from rsr_trl.rsr import CITATION, STUDENT, RSRError
from rsr_trl.scoring.fingerprint import dtype_of
from rsr_trl.scoring.loading import for_trainer, tokenizer_of
from rsr_trl.scoring.nulls import as_json
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.tokens import ExampleTokenizer
from rsr_trl.training import prepare
from rsr_trl.training.collator import NUM_SCORED, ROW, DrawnRows, live_collator, live_threshold
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_scores import LiveScores
from rsr_trl.training.live_student import ScoringPass, add_rsr_head, token_means
from rsr_trl.training.live_table import ScoreTable


logger = logging.get_logger(__name__)

PAPER = "[arXiv:2601.14249](https://huggingface.co/papers/2601.14249)"
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}  # what accelerate calls them
NOTHING_BY_SCORE = (
    "No score decides anything in this training: all examples come in random order, as in SFTTrainer. To choose by "
    "score, set rsr_group_column, rsr_keep_fraction or rsr_score_threshold, or train on a selection; to order, set "
    "rsr_sampling."
)


class RSRSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] that trains on the trajectories which suit the student best, only or first, by their
    Rank-Surprisal Ratio (RSR, **lower = more suitable**), and on request scores them again as the student changes.

    It takes what [`~trl.SFTTrainer`] takes. A train dataset that carries scores of this student over the same tokens
    (the columns of [`RSRScorer`]; `rsr_content` of each row is compared) starts from them, in whatever dtype they were
    computed; any other is scored once before the first step, if scores decide anything. By default they don't: all
    examples train in random order, which is the paper's recipe on a dataset of [`select_trajectories`].

    Example:

    ```python
    >>> args = RSRSFTConfig(output_dir="out", rsr_group_column="problem_id")  # the paper's recipe on a whole pool
    >>> RSRSFTTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=dataset).train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Student, as in [`~trl.SFTTrainer`].
        args ([`RSRSFTConfig`] or [`~trl.SFTConfig`], *optional*): A plain SFTConfig gets the default `rsr_` settings.
        data_collator ([`RSRDataCollator`], *optional*): TRL's own or ours, whose `score_threshold` then applies to
            live scores.
        train_dataset ([`~datasets.Dataset`]): Any text format of [`~trl.SFTTrainer`], before tokenization.
        kwargs: Everything else that [`~trl.SFTTrainer`] takes.

    Attributes:
        table ([`ScoreTable`]): The live scores, one row for each row of `trainer.train_dataset`.
    """

    _tag_names = ["trl", "sft", "rsr"]
    _train_is_prepared = False
    _step_is_empty = False  # no process has an example that trains in this step: nothing may move
    _may_pass = None  # the optimizer that knows

    # TRL calls, in this order: in SFTTrainer.__init__ `_prepare_dataset` (train, then eval); in train()
    # `get_train_dataloader`, `_load_optimizer_and_scheduler`, on_train_begin (the first scores); each epoch
    # on_epoch_begin (scores again, starts the order) before the loader draws, one batch ahead; each step
    # `get_batch_samples` (is there anything to train on), `compute_loss` (online scores), on_step_end (scores again),
    # logs, `_save_optimizer_and_scheduler`; on_epoch_end.
    def __init__(self, model, args=None, data_collator=None, train_dataset=None, *positional, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RSRSFTConfig(f"{name.split('/')[-1]}-RSR-SFT")
        elif not isinstance(args, RSRSFTConfig):
            args = RSRSFTConfig.from_sft_config(args)
        prepare.check_train_dataset(train_dataset, args)
        args.rsr_score_threshold = live_threshold(args, data_collator)
        # SFTTrainer would read the tokenizer from elsewhere, and warn of settings that a loaded student doesn't need.
        init_kwargs = args.model_init_kwargs
        if gguf := for_trainer(model, init_kwargs, kwargs.get("quantization_config")):
            model, args.model_init_kwargs = gguf["model"], None
            if len(positional) < 2 and kwargs.get("processing_class") is None:
                kwargs["processing_class"] = gguf["processing_class"]
        super().__init__(model, args, data_collator, train_dataset, *positional, **kwargs)
        args.model_init_kwargs = init_kwargs
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
            raise RSRError("Tensor, context and sequence parallelism aren't supported: set tp_size=cp_size=sp_size=1.")
        self.data_collator = live_collator(self.data_collator, args.rsr_rescore_strategy == "online")
        tokenize = self._prepare_images() if self._is_vision_dataset else None
        vocab_size = self.model.config.get_text_config().vocab_size
        lengths, num_scored = prepare.check_prepared(self.train_dataset, vocab_size)
        for line in prepare.describe(self.train_dataset, num_scored, args):
            logger.warning(line)
        adapted = is_peft_model(self.model)
        student = self.model.get_base_model() if adapted else self.model
        virtual_tokens = adapted and self.model.active_peft_config.is_prompt_learning
        shared = (self.accelerator, self.train_dataset, lengths)
        self.scoring = ScoringPass(
            student,
            *shared,
            self._tokenizer.pad_token_id,
            args.rsr_r_max,
            args.rsr_max_batch_tokens,
            args.rsr_share_prefixes,
            show_bar=not args.disable_tqdm,
            tokenize=tokenize,
        )
        if virtual_tokens:
            self.scoring.as_wrapped = True
            if self.scoring.layout == "packed":  # they would belong to the first of packed rows alone
                self.scoring.layout = "padded"
        self.table = self._first_table(num_scored, virtual_tokens)
        self.scores = LiveScores(self.table, *shared, args, measure=self._measure, log=self._log_with_next)
        self._scored_in_forward = add_rsr_head(student)
        self.add_callback(self.scores)

    def rescore(self, rows: np.ndarray | None = None) -> None:
        """
        Score rows of `trainer.train_dataset` (all by default) with the student as it is now and write the table.
        Collective: every process calls it, inside `train()`. Neither weights nor modes nor random numbers change.
        """
        self.scores.rescore(self.state.global_step, slice(None) if rows is None else rows)

    def _first_table(self, num_scored: np.ndarray, virtual_tokens: bool) -> ScoreTable:
        """With the dataset's own scores if they are of this very student and of the same tokens."""
        table = prepare.unmeasured(self.train_dataset, self.args.rsr_score, num_scored)
        needed = self.args.needs_scores and table.static is None
        if not prepare.OWN_SCORES.issubset(self.train_dataset.column_names):
            if not self.args.needs_scores:
                logger.warning(NOTHING_BY_SCORE)
            return table
        if virtual_tokens:
            return table  # with prompt learning it is another student than its base from the start
        own = [None]
        if self.accelerator.is_main_process:  # the others may not have weights yet (FSDP)
            settings = {"r_max": self.args.rsr_r_max, "assistant_only_loss": self.args.assistant_only_loss}
            scorer = RSRScorer(self.model, self.processing_class, **settings)
            scorer.tokenize_as(self.train_dataset.column_names)
            own[0] = scorer.fingerprint
        broadcast_object_list(own)
        # Who never scores in between has counted on the dataset's own.
        say = logger.warning if self.args.rsr_rescore_strategy == "no" else logger.info
        here = AUTOCAST.get(self.accelerator.mixed_precision, dtype_of(own[0]))
        if wrong := prepare.take_own_scores(self.train_dataset, table, own[0]):
            now = f"it is scored again, in {here}" if needed else "they aren't used"
            say(f"The train dataset's scores {wrong}: {now}.")
        elif needed and (dtype := dtype_of(self.train_dataset[0][STUDENT])) not in (dtype_of(own[0]), here):
            say(
                f"The train dataset's scores were computed in {dtype} and are used as they are: about 1% of rounding. "
                f"(`rsr score --dtype {here}` avoids it.)"
            )
        return table

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if isinstance(dataset, Dataset) and "input_ids" not in dataset.column_names:
            with global_then_local_main_first():
                dataset = as_json(dataset, args.dataset_num_proc)  # what SFTTrainer reads, the scorer reads
        # By the order of calls, because an evaluation set may be called "train" too.
        if not self._train_is_prepared:
            self._train_is_prepared = True
            own = tokenizer_of(processing_class) if self._is_vlm else processing_class
            tokenizer = ExampleTokenizer(
                own, args.max_length, args.assistant_only_loss, dataset_text_field=args.dataset_text_field
            )
            with global_then_local_main_first():
                if (to_text := formatting_func) is not None:  # before scoring sees the rows, and not a second time
                    dataset = dataset.map(lambda row: {"text": to_text(row)}, num_proc=args.dataset_num_proc)
                    formatting_func = None
                dataset = prepare.add_scored_column(dataset, tokenizer, args.dataset_num_proc)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _prepare_images(self) -> Callable:
        """Prepare rows with images, which SFTTrainer leaves to its collator; returns what tokenizes them."""
        from rsr_trl.scoring.images import SeeingTokenizer  # with libraries that text doesn't need

        args, own = self.args, tokenizer_of(self.processing_class)
        tokenizer = SeeingTokenizer(self.processing_class, own, args.max_length, args.assistant_only_loss)
        with global_then_local_main_first():
            dataset = as_json(self.train_dataset, args.dataset_num_proc)
            self.train_dataset = prepare.add_image_columns(dataset, tokenizer, args.dataset_num_proc)
        return functools.partial(tokenizer, features=dataset.features)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = [ROW, prepare.SCORED] if self.args.rsr_rescore_strategy == "online" else [ROW]
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    def get_train_dataloader(self) -> DataLoader:
        sampler = self.scores.start_sampler(self._train_batch_size)
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        rows = DrawnRows(rows, sampler.num_kept, len(sampler))
        return self._get_dataloader(rows, "Training", self._train_batch_size, lambda _: sampler, is_training=True)

    def get_batch_samples(self, *args):
        """The micro-batches of a step, as SFTTrainer draws them; notes whether any process trains on one of them."""
        batches, num_items = super().get_batch_samples(*args)
        if self.args.rsr_score_threshold is not None:
            trains = torch.tensor([any(map(_trains, batches))], device=self.args.device)
            self._step_is_empty = not self.accelerator.gather(trains).any()
            if self._may_pass is not self.optimizer:
                self._let_empty_steps_pass()
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._step_is_empty:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()  # as SFTTrainer's: its log asks
        return torch.zeros((), device=self.args.device)

    def _clip_grad_norm(self, model):
        return None if self._step_is_empty else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        # Without gradients fp16's scaler couldn't unscale.
        return 0.0 if self._step_is_empty else super()._get_grad_norm(model, grad_norm)

    def _let_empty_steps_pass(self) -> None:
        """Let neither optimizer (momentum, weight decay) nor schedule move in a step that nothing trains in."""
        optimizer, step = self.optimizer, self.optimizer.step

        @functools.wraps(step)  # with the mark by which torch's schedulers know it
        def step_unless_empty(*args, **kwargs):
            optimizer._is_overflow = self._step_is_empty  # accelerate's word for it: its schedulers wait then
            if not self._step_is_empty:
                step(*args, **kwargs)

        optimizer.step, self._may_pass = step_unless_empty, optimizer

    def compute_loss(self, model, inputs, *args, **kwargs):
        row, num_scored, scored = (inputs.pop(name, None) for name in (ROW, NUM_SCORED, prepare.SCORED))
        if scored is not None:
            inputs["rsr_targets"] = inputs["input_ids"].masked_fill(~scored, -100)
        # Others train in this step. Experts' routers aren't to be balanced for the row that holds an empty place.
        placeholder = self.aux_loss_enabled and model.training and not _trains(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        loss = 0 * loss if placeholder else loss
        if scored is None:
            return loss
        stats = self._scored_in_forward.pop()
        means = token_means(stats.ranks, stats.surprisals, num_scored.cpu(), self.args.rsr_r_max)
        self.scores.add_online(row.cpu().numpy(), *means)
        return loss

    def _measure(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.scoring(self.model_wrapped, self.optimizer, rows)  # both are wrapped in train()

    def _log_with_next(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.scores.write_online_history(self.state.global_step)
        if self.args.should_save:
            self.scores.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
            self.scores.load(checkpoint, state.global_step)

    def _issue_warnings_after_load(self, load_result) -> None:
        # Of models that see, transformers 5.23 saves some under names that its Trainer does not find again.
        if load_result.missing_keys and load_result.unexpected_keys:
            raise RSRError(
                "The checkpoint's weights have other names than the student's (first: "
                f"{load_result.unexpected_keys[0]!r}), so transformers would resume without them. Begin another "
                "training with the checkpoint as its model."
            )
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if not self.is_world_process_zero():
            return
        summary = self.scores.summary()
        if not (summary or self.args.needs_scores):
            return  # nothing was scored
        lines = [
            "\n## Selection by RSR\n",
            f"The Rank-Surprisal Ratio (RSR, {PAPER}) of a trajectory for this student is the sum of clipped token "
            "ranks over the sum of surprisals. **Lower means more suitable.**",
            "In this training, it was used with these settings:"
            if self.args.needs_scores
            else "The training data came with these scores; all of it was used, in random order.",
            "\n| setting | value |\n|---|---|",
            *(f"| {name} | `{value}` |" for name, value in vars(self.args).items() if name.startswith("rsr_")),
        ]
        if summary:
            lines.append("\n| score at the end of training | value (RSR: lower = more suitable) |\n|---|---|")
            lines += [f"| {name.removeprefix('rsr/')} | {value:.4g} |" for name, value in summary.items()]
        lines.append(f"\nCite RSR as:\n\n```bibtex\n{CITATION}\n```")
        with open(os.path.join(self.args.output_dir, "README.md"), "a", encoding="utf-8") as card:
            card.write("\n".join(lines) + "\n")

    def end(self) -> None:
        on_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
        super().end()
        if on_gloo:
            # Gloo's threads let go of their last tensors after the collective has returned, and need the interpreter
            # for it: a process that exits in that moment aborts (pytorch/pytorch#179291).
            time.sleep(1)


def _trains(batch: dict[str, torch.Tensor]) -> bool:
    return bool((batch["labels"] != -100).any())
