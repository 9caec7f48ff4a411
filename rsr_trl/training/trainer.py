"""SFTTrainer that trains first on what suits the student now, and looks again as the student changes.

The trainer owns the score table. `schedule.py` decides when to score, `live_student.py` how, the sampler the order.
The training loop and the loss are SFTTrainer's.
"""

import os
import time
from dataclasses import fields

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, is_compiled_module, is_peft_model
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers.utils import logging
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from rsr_trl.data import read_table
from rsr_trl.rsr import CITATION, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, SCORE_PREFIX, STUDENT
from rsr_trl.scoring.batches import plan_batches
from rsr_trl.scoring.fingerprint import student_fingerprint
from rsr_trl.scoring.student import Student, best_layout, default_batch_tokens, length_border
from rsr_trl.scoring.tokens import ExampleTokenizer
from rsr_trl.selection.table import labels, numbers
from rsr_trl.training.collator import NUM_SCORED, live_collator, live_threshold
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.epoch_rows import ROW, SCORED, DrawnRows
from rsr_trl.training.live_student import add_rsr_head, score_rows, token_means, undisturbed
from rsr_trl.training.prepare import (
    SOURCE_ROW,
    add_scored_column,
    check_prepared,
    check_train_dataset,
    static_scores,
)
from rsr_trl.training.sampler import RSRSampler
from rsr_trl.training.schedule import ScoreCallback
from rsr_trl.training.score_log import ScoreHistory, card_section, spearman, summarize
from rsr_trl.training.score_table import ScoreTable


logger = logging.get_logger(__name__)

SCORES_NAME = "rsr_scores.safetensors"
ORDER_NAME = "rsr_order.safetensors"


class RSRSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] that trains on the trajectories which suit the student best, first or only, by their
    Rank-Surprisal Ratio (RSR, **lower = more suitable**), and scores them again as the student changes.

    It takes what [`~trl.SFTTrainer`] takes. A train dataset that carries scores of this very student over the same
    tokens (the columns of [`RSRScorer`]) starts from them; any other is scored once before the first step.

    Example:

    ```python
    >>> from rsr_trl import RSRSFTConfig, RSRSFTTrainer

    >>> args = RSRSFTConfig(output_dir="out", rsr_group_column="problem_id")  # best-of-n, chosen anew each epoch
    >>> trainer = RSRSFTTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=dataset)
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student, as in [`~trl.SFTTrainer`].
        args ([`RSRSFTConfig`] or [`~trl.SFTConfig`], *optional*):
            Configuration. A plain SFTConfig gets the default `rsr_` settings.
        data_collator ([`RSRDataCollator`], *optional*):
            TRL's own collator or an [`RSRDataCollator`], whose `score_threshold` then applies to live scores.
        train_dataset ([`~datasets.Dataset`]):
            Any text format of [`~trl.SFTTrainer`], before tokenization.
        kwargs:
            Everything else that [`~trl.SFTTrainer`] takes.

    Attributes:
        table ([`ScoreTable`]): The live scores, one row for each row of `trainer.train_dataset`.
        layout (`str`): How rows lie in a batch of the scoring pass, see [`~rsr_trl.scoring.student.best_layout`].
    """

    _tag_names = ["trl", "sft", "rsr"]
    _name = "RSR-SFT"
    _paper = {
        "title": "Which Reasoning Trajectories Teach Students to Reason Better? A Simple Metric of Informative "
        "Alignment",
        "id": "2601.14249",
        "citation": CITATION,
    }

    def __init__(self, model, args=None, data_collator=None, train_dataset=None, *positional, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RSRSFTConfig(f"{name.split('/')[-1]}-RSR-SFT")
        elif not isinstance(args, RSRSFTConfig):
            args = RSRSFTConfig.from_sft_config(args)
        check_train_dataset(train_dataset, args)
        self._score_threshold = live_threshold(args, data_collator)
        super().__init__(model, args, data_collator, train_dataset, *positional, **kwargs)
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
            raise ValueError(
                "Tensor, context and sequence parallelism split what one score is made from and aren't supported: set "
                "tp_size=cp_size=sp_size=1."
            )
        vocab_size = self.model.config.get_text_config().vocab_size
        self._lengths, num_scored = check_prepared(self.train_dataset, vocab_size)
        if unscored := int((num_scored == 0).sum()):
            logger.warning(f"{unscored} of {len(num_scored)} examples have no token to score: they come last.")
        self.table = ScoreTable(
            num_scored, args.rsr_score, static_scores(self.train_dataset, args.rsr_score, num_scored)
        )
        self._has_scores = self._take_scores_of_dataset()
        self._groups = self._labels_of(args.rsr_group_column)
        self._teachers = self._labels_of(args.rsr_teacher_column)
        self._history = ScoreHistory(args.output_dir, np.asarray(self.train_dataset[SOURCE_ROW][:]))
        self._online = args.rsr_rescore_strategy == "online"
        # Of the current step on this process, each of shape (rows, 3): row, mean clipped rank, mean surprisal.
        self._measured: list[np.ndarray] = []
        self._unwritten = np.zeros(len(self.table), dtype=bool)  # measured online and not yet in the history
        self._resumed = False
        self.data_collator = live_collator(self.data_collator, self._online)
        device = self.accelerator.device
        self._max_batch_tokens = args.rsr_max_batch_tokens or default_batch_tokens(device)
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        # The tokens that prompt learning puts in front of a row would belong to the first of packed rows alone.
        in_front = is_peft_model(self.model) and self.model.active_peft_config.is_prompt_learning
        self.layout = best_layout(base, device)
        if in_front and self.layout == "packed":
            self.layout = "padded"
        self._border = length_border(base)
        self._rsr_head = add_rsr_head(base)
        self.add_callback(ScoreCallback(self))

    # ------------------------------------------------------------------------------------------------ data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if dataset_name == "train":
            tokenizer = ExampleTokenizer(
                processing_class, args.max_length, args.assistant_only_loss, dataset_text_field=args.dataset_text_field
            )
            with global_then_local_main_first():
                if formatting_func is not None:  # before scoring sees the rows, and not a second time
                    dataset = dataset.map(
                        lambda example: {"text": formatting_func(example)}, num_proc=args.dataset_num_proc
                    )
                    formatting_func = None
                dataset = add_scored_column(dataset, tokenizer, args.dataset_num_proc)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = [ROW, SCORED] if self._online else [ROW]
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    def get_train_dataloader(self) -> DataLoader:
        self._sampler = self._get_train_sampler()
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        return self._get_dataloader(
            dataset=DrawnRows(rows, self._sampler.num_kept, len(self._sampler)),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda _: self._sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RSRSampler:
        args = self.args
        return RSRSampler(
            self.table,
            sampling=args.rsr_sampling,
            temperature=args.rsr_temperature,
            prefer=args.rsr_prefer,
            keep_fraction=args.rsr_keep_fraction,
            groups=None if self._groups is None else self._groups[0],
            keep_per_group=args.rsr_keep_per_group,
            score_threshold=self._score_threshold,
            seed=args.seed if args.data_seed is None else args.data_seed,
            # Every process gets the same number of full batches, so that accelerate repeats no example to even them
            # out.
            pad_to_multiple_of=1 if args.dataloader_drop_last else self._train_batch_size * args.world_size,
            live=False,
        )

    def _labels_of(self, column: str | None) -> tuple[np.ndarray, list] | None:
        return None if column is None else labels(read_table(self.train_dataset, [column]), column)

    def _take_scores_of_dataset(self) -> bool:
        """Start from the dataset's own scores if they are of this very student and of the same tokens."""
        wanted = [STUDENT, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS]
        if not set(wanted) <= set(self.train_dataset.column_names):
            return False
        if is_peft_model(self.model) and self.model.active_peft_config.is_prompt_learning:
            return False  # another student than its base from the start
        own = [None]
        if self.accelerator.is_main_process:  # the others may not have weights yet (FSDP)
            own[0] = student_fingerprint(
                Student(self.model).weights_fingerprint(),
                self._tokenizer,
                r_max=self.args.rsr_r_max,
                assistant_only_loss=self.args.assistant_only_loss,
                logits_dtype="float32",
            )
        broadcast_object_list(own)
        data = read_table(self.train_dataset, wanted)
        same_tokens = np.array_equal(numbers(data, NUM_TOKENS), self.table.num_tokens)
        if not same_tokens or data[STUDENT].unique().to_pylist() != own:
            # Who never scores in between has counted on the dataset's own.
            tell = logger.warning if self.args.rsr_rescore_strategy == "no" else logger.info
            tell(
                f"The train dataset's scores aren't of this student as it is here, in {str(self.model.dtype)[6:]}, "
                "over the same tokens: it is scored anew. (`rsr score --dtype` says in which dtype it scores.)"
            )
            return False
        self.table = ScoreTable.from_dataset(self.train_dataset, self.table.score, self.table.static)
        return True

    # ------------------------------------------------------------------------------------------------ scoring

    def rescore(self, rows: np.ndarray | None = None) -> None:
        """
        Score rows with the student as it is now and write the table. Collective: every process calls it, inside
        `train()`.

        Nothing else changes: not the weights, not their mode, not a random number.

        Args:
            rows (int array, *optional*): Rows of `trainer.train_dataset`; all of them by default.
        """
        batches = self.plan(rows)
        if not batches:
            return
        before, started = self.table.scores, time.perf_counter()
        while (measured := self._measure(batches)) is None:
            batches = self.plan(rows)
        rows = measured[0]
        self.table.update(*measured, step=self.state.global_step)
        seconds = time.perf_counter() - started
        logs = {"rsr/seconds": seconds, "rsr/tokens_per_second": float(self._lengths[rows].sum() / seconds)}
        if (moved := spearman(before[rows], self.table.scores[rows])) is not None:
            logs["rsr/spearman_with_last"] = moved
        self._log_scores(logs)
        self._write_history(rows, "pass")

    def plan(self, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Batches of rows in which [`RSRSFTTrainer.rescore`] scores, the same on every process."""
        rows = np.arange(len(self.table)) if rows is None else rows
        rows = rows[self.table.num_tokens[rows] > 0]
        batches = plan_batches(self._lengths[rows], self._max_batch_tokens, self.layout, self._border)
        return [rows[batch] for batch in batches]

    def _measure(self, batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What [`score_rows`] finds, or `None` where these batches need too much memory: plan smaller ones then."""
        # Compiled for training batches, it would be compiled again for every shape of a scoring batch.
        model = self.model_wrapped._orig_mod if is_compiled_module(self.model_wrapped) else self.model_wrapped
        try:
            with undisturbed(model, self.optimizer):
                return score_rows(
                    model,
                    self.accelerator,
                    self.train_dataset,
                    batches,
                    r_max=self.args.rsr_r_max,
                    pad_token_id=self.data_collator.pad_token_id,
                    progress=not self.args.disable_tqdm,
                    layout=self.layout,
                )
        except torch.OutOfMemoryError as error:
            # Several processes work in step: one alone can't begin anew. And no batch is smaller than its longest row.
            longest_row = self._lengths[batches[0][0]]
            if self.accelerator.num_processes > 1 or longest_row >= self._max_batch_tokens:
                longest = max(self._lengths[batch].sum() for batch in batches)
                error.add_note(
                    f"This was while scoring, in batches of up to {longest} tokens: set rsr_max_batch_tokens below "
                    f"{self._max_batch_tokens}, or where one trajectory is too long for the memory, lower max_length."
                )
                raise
        self._max_batch_tokens //= 2
        logger.warning(
            f"Out of GPU memory while scoring: going on with rsr_max_batch_tokens={self._max_batch_tokens}. Set it "
            "next time."
        )
        return None

    def _rescore_upcoming(self) -> None:
        """
        Re-score in the middle of an epoch: what this epoch may still draw, or all if only the next one can follow it.
        """
        args, step = self.args, self.state.global_step
        in_epoch = step % self._steps_per_epoch
        # Batches that are drawn before their step comes: accelerate's one, and what workers prefetch. Counted as if
        # each were a step, so that the same steps see the new scores on any number of processes.
        read_ahead = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        draws = (in_epoch + read_ahead) * self.get_total_train_batch_size(args)
        if in_epoch > 0 and draws < self._sampler.num_kept:
            self._sampler.commit(draws)
            self.rescore(self._sampler.candidates())
            self._sampler.refresh()
        elif step - in_epoch + (self._steps_per_epoch if in_epoch else 0) < self.state.max_steps:
            self.rescore()

    def compute_loss(self, model, inputs, *args, **kwargs):
        row, num_scored, scored = (inputs.pop(name, None) for name in (ROW, NUM_SCORED, SCORED))
        if scored is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs["rsr_targets"] = inputs["input_ids"].masked_fill(~scored, -100)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        stats = self._rsr_head.take()
        means = token_means(stats.ranks, stats.surprisals, num_scored.cpu(), self.args.rsr_r_max)
        self._measured.append(np.stack([row.cpu().numpy(), *means], axis=1))
        return loss

    def _take_online_scores(self) -> None:
        """Write what the training step measured, on all processes, into every process's table."""
        local = np.concatenate(self._measured)
        self._measured.clear()
        padded = np.full((self._train_batch_size * self.args.gradient_accumulation_steps, 3), np.nan)
        padded[: len(local)] = local
        padded = self.accelerator.gather(torch.from_numpy(padded).to(self.accelerator.device)).cpu().numpy()
        rows = padded[:, 0]
        taken = padded[rows >= 0]
        taken = taken[self.table.num_tokens[taken[:, 0].astype(np.int64)] > 0]
        rows = taken[:, 0].astype(np.int64)
        # The student that was measured had not taken this step yet.
        self.table.update(rows, taken[:, 1], taken[:, 2], step=self.state.global_step - 1, train_mode=True)
        self._unwritten[rows] = True

    # ------------------------------------------------------------------------------------------------ telling

    def _summary(self) -> dict[str, float]:
        """Of RSR as it is known, and of the score that the examples are ordered by."""
        summary, name = summarize(self.table.rsr, self._teachers), self.table.score.removeprefix(SCORE_PREFIX)
        return summary if name == RSR else summary | summarize(self.table.scores, self._teachers, name)

    def _log_scores(self, logs: dict[str, float] | None = None) -> None:
        """Add to what the trainer logs next."""
        logs = self._summary() | {"rsr/kept_share": self._sampler.kept_share()} | (logs or {})
        for name, value in logs.items():
            self._metrics["train"][name].append(value)

    def _write_history(self, rows: np.ndarray, kind: str) -> None:
        if rows.size and self.is_world_process_zero():
            self._history.write(self.table, rows, self.state.global_step, kind)

    def _write_online_history(self) -> None:
        self._write_history(np.flatnonzero(self._unwritten), "online")
        self._unwritten[:] = False

    def end(self) -> None:
        on_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
        super().end()
        if on_gloo:
            # Gloo's threads let go of their last tensors after the collective has returned, and need the interpreter
            # for it: a process that exits in that moment aborts (pytorch/pytorch#179291).
            time.sleep(1)

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            how = {f.name: f"`{getattr(self.args, f.name)}`" for f in fields(self.args) if f.name.startswith("rsr_")}
            with open(os.path.join(self.args.output_dir, "README.md"), "a", encoding="utf-8") as card:
                card.write("\n" + card_section(how, self._summary()))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._write_online_history()
        if self.args.should_save:
            self.table.save(os.path.join(output_dir, SCORES_NAME))
            save_file(self._sampler.state_dict(), os.path.join(output_dir, ORDER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        paths = [os.path.join(checkpoint, name) for name in (SCORES_NAME, ORDER_NAME)]
        for path in paths:
            if not os.path.isfile(path):
                raise ValueError(
                    f"{path} is missing, without which the examples can't go on in the same order. Resume from a "
                    "checkpoint that RSRSFTTrainer saved (with save_only_model=False)."
                )
        self.table.load_state_dict(load_file(paths[0]))
        self._sampler.load_state_dict(load_file(paths[1]))
        self._resumed = True
