"""What RSRSFTTrainer promises in one process, against SFTTrainer, RSRScorer and plain arithmetic."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback
from trl import SFTConfig

from rsr_trl.data import as_trl_format
from rsr_trl.rsr import CITATION, dataset_rsr
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.training.collator import MASKED_ROW, RSRDataCollator
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_table import ScoreTable
from rsr_trl.training.trainer import RSRSFTTrainer
from tests.training.runs import DEFAULTS, examples, history, rows_of_steps, run, scores_of_epoch, source_rows


@pytest.mark.parametrize(
    "args",
    [
        {"rsr_rescore_strategy": "no"},
        {"rsr_rescore_strategy": "epoch", "gradient_accumulation_steps": 3},
        {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 1, "dataloader_num_workers": 1},
        {"rsr_rescore_strategy": "online", "gradient_accumulation_steps": 2},
        {"rsr_rescore_strategy": "epoch", "activation_checkpointing": True},
        {"rsr_rescore_strategy": "online", "activation_checkpointing": True},
        {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 2, "eval_strategy": "no", "data_seed": 7},
        {"rsr_rescore_strategy": "epoch", "dataloader_drop_last": True, "seed": 3},
    ],
    ids=str,
)
def test_with_scores_ignored_losses_are_bitwise_those_of_sft_trainer(args, student, tmp_path):
    plain_args = {name: value for name, value in args.items() if not name.startswith("rsr_")}
    plain = run(student, str(tmp_path / "plain"), examples(), plain_args, plain=True)
    ours = run(student, str(tmp_path / "ours"), examples(), args | {"rsr_sampling": "random"})
    assert ours["record"] == plain["record"]
    assert ours["weights"] == plain["weights"]
    metrics = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
    for our_log, their_log in zip(ours["logs"][:-1], plain["logs"][:-1], strict=True):
        assert {name: our_log[name] for name in metrics} == {name: their_log[name] for name in metrics}


def chat(*pairs, role="role", content="content") -> list[dict]:
    return [{role: who, content: text} for who, text in pairs]


FORMATS = {
    "prompt-completion": lambda p, c: {"prompt": p, "completion": c},
    "chat prompt-completion": lambda p, c: {"prompt": chat(("user", p)), "completion": chat(("assistant", c))},
    "messages": lambda p, c: {
        "messages": chat(("system", "Add."), ("user", p), ("assistant", c), ("user", "Sure?"), ("assistant", p))
    },
    "conversations": lambda p, c: {"conversations": chat(("user", p), ("assistant", c), role="from", content="value")},
    "text": lambda p, c: {"text": p + c},
}
LORA = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
ONE_STEP = {"max_steps": 1, "learning_rate": 0.0}


def scored_by(*student, rows=None, **settings) -> Dataset:
    return RSRScorer(*student, **settings).score(Dataset.from_list(rows or examples()))


def check_against_scorer(trainer, model, tokenizer, dataset, **scorer_settings):
    """Identical ids, and the table's first scores within rounding of RSRScorer's."""
    scorer = RSRScorer(model, processing_class=tokenizer, **scorer_settings)
    expected = scorer.score(dataset)
    trainer.train()
    assert trainer.table.step.max() == 0
    np.testing.assert_allclose(trainer.table.rsr, np.array(expected["rsr"][:], dtype=float), rtol=1e-5)
    np.testing.assert_array_equal(trainer.table.num_tokens, expected["rsr_num_tokens"])
    ids = [example.input_ids.tolist() for example in scorer.tokenize(list(dataset))]
    assert ids == list(trainer.train_dataset["input_ids"])


@pytest.mark.parametrize("name", FORMATS)
def test_scores_are_those_of_rsr_scorer_for_every_format(name, make, student_parts):
    dataset = Dataset.from_list([FORMATS[name](row["prompt"], row["completion"]) for row in examples(12)])
    check_against_scorer(make(dataset, None, *student_parts, **ONE_STEP), *student_parts, dataset)


def test_scores_of_tool_conversations_with_qwen3_are_those_of_rsr_scorer(
    make, airline_rows, airline_tools, qwen3_tokenizer, tiny_student
):
    tools = json.dumps(airline_tools[:2])
    dataset = Dataset.from_list([{"messages": row["messages"][1:8], "tools": tools} for row in airline_rows[:4]])
    student = (tiny_student(vocab_size=len(qwen3_tokenizer), max_position_embeddings=8192), qwen3_tokenizer)
    trainer = make(dataset, None, *student, max_length=1024, per_device_train_batch_size=1, **ONE_STEP)
    check_against_scorer(trainer, *student, dataset, max_length=1024)
    assert (trainer.table.num_tokens > 20).all()


def test_truncated_and_formatted_rows_are_scored_as_they_are_trained_on(make, student_parts):
    dataset = Dataset.from_list([{"q": row["prompt"], "a": row["completion"]} for row in examples(12)])
    arguments = {"formatting_func": lambda example: example["q"] + example["a"]}
    trainer = make(dataset, arguments, *student_parts, max_length=16, **ONE_STEP)
    formatted = dataset.map(lambda example: {"text": example["q"] + example["a"]})
    check_against_scorer(trainer, *student_parts, formatted, max_length=16)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 16


def test_rows_that_sft_trainer_drops_and_shuffles_keep_their_own_scores(train, student_parts):
    rows = examples(12)
    rows[4]["prompt"] = "x" * 50  # the prompt alone fills max_length: SFTTrainer drops it
    expected = scored_by(*student_parts, rows=rows, max_length=40)["rsr"]
    trainer = train(rows, None, *student_parts, max_length=40, shuffle_dataset=True, rsr_rescore_strategy="no")
    found = history(trainer)
    assert sorted(found["row"]) == [0, 1, 2, 3, *range(5, 12)]
    assert list(trainer.train_dataset["rsr_source_row"]) != sorted(found["row"])
    np.testing.assert_allclose(found["rsr"], [expected[row] for row in found["row"]], rtol=1e-5)


def test_starts_from_own_scores_only_if_they_are_of_this_student_and_these_tokens(train, student, student_parts):
    scored = scored_by(*student_parts)

    def start(dataset, own: bool, **args):
        trainer = train(dataset, max_steps=1, **args)
        kind = "dataset" if own else "pass"
        assert os.listdir(f"{trainer.args.output_dir}/rsr_history") == [f"step-00000000-{kind}.parquet"]
        assert not own or trainer.table.rsr.tolist() == scored["rsr"][:]
        return trainer

    trainer = start(scored, own=True)
    assert trainer.table.step.tolist() == [0] * len(scored)
    assert history(trainer)["rsr"].tolist() == scored["rsr"][:]
    start(scored, own=True, trainer_kwargs=LORA)  # as it begins it is the student that was scored
    start(scored.remove_columns("rsr_student"), own=False)
    start(scored.remove_columns("rsr_content"), own=False)  # scored before there was this column
    start(scored, own=False, max_length=12)
    start(scored, own=False, rsr_r_max=7)
    other = scored.map(lambda row, i: {"rsr_student": "0" * 16 if i == 3 else row["rsr_student"]}, with_indices=True)
    start(other, own=False)
    with torch.no_grad():
        student_parts[0].model.norm.weight[0] += 0.5
    student_parts[0].save_pretrained(student)
    start(scored, own=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"prompt": "Be careful. " + row["prompt"]},
        lambda row: {"completion": row["completion"][::-1]},
        lambda row: {"prompt": row["prompt"] + "?"} if row["prompt"].startswith("7:") else {},
    ],
    ids=["a system prompt", "other words of equal length", "one other question"],
)
def test_scores_of_other_tokens_than_it_trains_on_are_not_taken(make, student_parts, caplog, change):
    changed = scored_by(*student_parts).map(change)
    trainer = make(changed, None, *student_parts, rsr_rescore_strategy="no", **ONE_STEP)
    assert "The train dataset's scores are of other tokens than it trains on in" in caplog.text
    check_against_scorer(trainer, *student_parts, changed.select_columns(["prompt", "completion"]))


def test_a_second_train_scores_again(train, student_parts):
    scored = scored_by(*student_parts)
    trainer = train(scored, None, *student_parts, max_steps=3, rsr_rescore_strategy="no")
    assert trainer.table.rsr.tolist() == scored["rsr"][:]
    changed = scored_by(*student_parts)["rsr"]  # the weights have moved
    trainer.train()
    np.testing.assert_allclose(trainer.table.rsr, changed, rtol=1e-5)


def test_each_epoch_is_ordered_by_the_scores_of_its_start(train):
    trainer = train(rsr_sampling="ordered", per_device_train_batch_size=1)
    assert sorted(history(trainer)["step"].unique()) == [0, 19, 38]
    orders = [scores_of_epoch(trainer, epoch).sort_values().index.tolist() for epoch in range(3)]
    assert [sum(source_rows(trainer, epoch), []) for epoch in range(3)] == orders
    assert orders[0] != orders[1]


def test_re_scoring_in_an_epoch_covers_what_is_to_come_and_reorders_it(train):
    steps = {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 6}
    trainer = train(rsr_sampling="ordered", per_device_train_batch_size=1, num_train_epochs=1, **steps)
    drawn, found = sum(source_rows(trainer, 0), []), history(trainer)
    for step, begin in ((6, 7), (12, 13)):  # accelerate reads one batch ahead
        of_step = found[found["step"] == step].set_index("row")["rsr"]
        assert set(of_step.index) == set(drawn[begin:])
        assert drawn[begin : begin + 6] == of_step.sort_values().index.tolist()[:6]
    assert found["step"].max() == 12  # nothing is left to come at step 18


@pytest.mark.parametrize(
    ("every", "passes"), [(12, [0, 12, 19, 24, 36, 38, 48]), (18, [0, 18, 36, 38, 54]), (38, [0, 38])]
)
def test_between_steps_too_an_epoch_is_ordered_by_scores_of_one_moment(train, every, passes):
    steps = {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": every}
    trainer = train(rsr_sampling="ordered", per_device_train_batch_size=1, **steps)
    found = history(trainer)
    assert sorted(found["step"].unique()) == passes
    for epoch in (1, 2):
        latest = found[found["step"] <= 19 * epoch]["step"].max()
        of_latest = found[found["step"] == latest].set_index("row")["rsr"]
        assert len(of_latest) == 19
        until = min([step for step in passes if step > 19 * epoch] + [19 * (epoch + 1)])
        drawn = sum(source_rows(trainer, epoch), [])[: until - 19 * epoch]
        assert drawn == of_latest.sort_values().index.tolist()[: len(drawn)]


@pytest.mark.parametrize("trainer_kwargs", [{}, LORA], ids=["full", "lora"])
def test_re_scoring_equals_a_scorer_with_the_weights_of_that_moment(train, trainer_kwargs):
    trainer = train(trainer_kwargs=trainer_kwargs, num_train_epochs=2, save_strategy="epoch")
    assert not np.allclose(*(history(trainer).pivot(index="row", columns="step", values="rsr").to_numpy().T))
    scored = scored_by(f"{trainer.args.output_dir}/checkpoint-{trainer.scores.steps_per_epoch}")
    np.testing.assert_allclose(trainer.table.rsr, scored["rsr"], rtol=1e-5)


CHOICES = {
    "best of a problem": ({"rsr_group_column": "problem"}, lambda s: s.groupby(s.index // 3).idxmin()),
    "share": ({"rsr_keep_fraction": 0.3, "rsr_prefer": "high"}, lambda s: s.nlargest(6).index),
    "threshold": ({"rsr_score_threshold": 11.5, "dataloader_num_workers": 1}, lambda s: s.index[s <= 11.5]),
    "threshold of the collator": ({}, lambda s: s.index[s <= 11.5]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_epoch_trains_on_the_most_suitable_of_its_start(train, name):
    args, choose = CHOICES[name]
    own = {"data_collator": RSRDataCollator(pad_token_id=0, score_threshold=11.5)} if "collator" in name else {}
    trainer = train(None, own, learning_rate=3e-2, num_train_epochs=5, **args)
    chosen = [sorted(choose(scores_of_epoch(trainer, epoch))) for epoch in range(5)]
    assert [sorted(sum(source_rows(trainer, epoch), [])) for epoch in range(5)] == chosen
    assert chosen[0] != chosen[-1]  # the student changed its mind about some row
    if "threshold" in name:
        masked, logs = [19 - len(rows) for rows in chosen], trainer.state.log_history
        steps = trainer.scores.steps_per_epoch
        assert steps == 10 and 0 < masked[0] < 19  # rows that don't train count towards the length
        counts = [log["rsr/masked_rows"] for log in logs if "rsr/masked_rows" in log]
        assert counts[steps - 1 :: steps] == masked
        shares = [log["rsr/kept_share"] for log in logs if "rsr/kept_share" in log]
        assert shares == [pytest.approx(1 - count / 19) for count in masked]


class Moving(TrainerCallback):
    """Notes after each step the weights, the next learning rate and the optimizer's momentum."""

    def __init__(self):
        self.weights, self.rates, self.momenta = [], [], []

    def on_train_begin(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
        self.on_step_end(args, state, control, model, lr_scheduler)

    def on_step_end(self, args, state, control, model=None, lr_scheduler=None, optimizer=None, **kwargs):
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        self.rates.append(lr_scheduler.get_last_lr()[0])
        states = [] if optimizer is None else optimizer.state.values()
        self.momenta.append(sum(float(s["exp_avg"].abs().sum() + s["step"]) for s in states))


def mixture_of_experts():
    shape = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=262, num_experts_per_tok=2, initializer_range=0.3, **shape, **heads)
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize(
    "args",
    [{}, {"gradient_accumulation_steps": 3}, {"max_grad_norm": 0.0}, {"rsr_rescore_strategy": "online"}],
    ids=["plain", "accumulated", "unclipped", "online"],
)
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_a_step_in_which_nothing_trains_moves_nothing(make, tiny_student, experts, args):
    moving, model = Moving(), mixture_of_experts() if experts else tiny_student()
    shared = {"rsr_rescore_strategy": "no", "lr_scheduler_type": "linear", "weight_decay": 0.1, "num_train_epochs": 2}
    shared |= {"rsr_sampling": "ordered", "rsr_score_threshold": 12.0 if experts else 10.6}
    trainer = make(examples(40), {"callbacks": [moving]}, model, **shared | args)
    assert trainer.aux_loss_enabled == experts
    trainer.train()
    rows, logs = rows_of_steps([vars(trainer)]), [log for log in trainer.state.log_history if "loss" in log]
    empty = {step for step in rows if not rows[step]}
    per_epoch = trainer.scores.steps_per_epoch
    assert 0 < len(empty) < len(rows) and min(empty) < per_epoch <= max(set(rows) - empty)
    for step in rows:
        before, after = moving.weights[step : step + 2]
        assert torch.equal(before, after) == (step in empty)
        assert (moving.rates[step] == moving.rates[step + 1]) == (step in empty)
        assert (logs[step]["grad_norm"] == 0) == (step in empty)
        if step in empty:
            assert moving.momenta[step] == moving.momenta[step + 1] and logs[step]["loss"] == 0
    assert trainer.lr_scheduler.last_epoch == len(rows) - len(empty)


def test_an_empty_micro_batch_gives_the_experts_no_gradient(make):
    trainer = make(None, None, mixture_of_experts())
    batch = trainer.data_collator([MASKED_ROW])
    trainer.compute_loss(trainer.model.train(), batch).backward()
    assert not any(p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("prefer", ["low", "high"])
def test_a_threshold_that_nothing_is_within_stops_before_the_first_step(make, prefer):
    trainer = make(rsr_score_threshold=0.1 if prefer == "low" else 1e6, rsr_prefer=prefer)
    with pytest.raises(ValueError) as raised:
        trainer.train()
    scores, message = history(trainer)["rsr"], str(raised.value)
    end, nearest, way = ("lowest", scores.min(), "lower") if prefer == "low" else ("highest", scores.max(), "higher")
    assert f"threshold={trainer.args.rsr_score_threshold} lets" in message and f" and {way} through" in message
    assert f"the {end} is {nearest:.4g}, the median {scores.median():.4g}" in message
    assert trainer.record == []


def test_a_threshold_that_nothing_is_within_any_more_is_said_once(make, monkeypatch, caplog):
    trainer = make(rsr_score_threshold=50.0)
    update = ScoreTable.update

    def moved(table, rows, ranks, surprisals, step, **kwargs):
        ranks, surprisals = (np.full(len(rows), 60.0), np.ones(len(rows))) if step else (ranks, surprisals)
        update(table, rows, ranks, surprisals, step, **kwargs)

    monkeypatch.setattr(ScoreTable, "update", moved)
    trainer.train()
    said = [record.message for record in caplog.records if "No example trains" in record.message]
    assert len(said) == 1 and "the lowest is 60" in said[0]
    assert said[0].endswith(f"from step {trainer.scores.steps_per_epoch} on.")
    assert {step for step, rows, _ in trainer.record if rows} == set(range(trainer.scores.steps_per_epoch))


def test_unscorable_rows_come_last_and_are_never_chosen(make, train, caplog):
    rows = [FORMATS["messages"](row["prompt"], row["completion"]) for row in examples(8)]
    rows[2] = {"messages": chat(("user", "No answer here."))}
    trainer = make(rows, per_device_train_batch_size=1)
    assert "1 of 8 examples have no token to score" in caplog.text
    trainer.train()
    assert [source_rows(trainer, epoch)[-1] for epoch in range(3)] == [[2]] * 3
    assert np.isnan(trainer.table.rsr).tolist() == [i == 2 for i in range(8)]
    chosen = train(rows, per_device_train_batch_size=1, rsr_keep_fraction=0.9)
    assert 2 not in sum(source_rows(chosen, 0), [])


def test_bare_answers_are_counted_and_not_chosen(make, caplog):
    rows = [
        row | {"completion": row["completion"] + " and so on" * 10 * (i % 3 < 2)} for i, row in enumerate(examples(9))
    ]
    rows[3]["completion"] = rows[4]["completion"] = "4"  # problem 1 has bare answers only
    trainer = make(rows, rsr_group_column="problem", rsr_keep_per_group=3, rsr_min_tokens=None)
    assert "5 of 9 examples have fewer than 32 scored tokens and aren't chosen" in caplog.text
    assert "1 of 3 groups have no longer one" in caplog.text
    trainer.train()
    assert [sorted(sum(source_rows(trainer, epoch), [])) for epoch in range(3)] == [[0, 1, 6, 7]] * 3
    with pytest.raises(ValueError, match="All 9 .*isn't made for bare answers.* rsr_min_tokens=0"):
        make(examples(9), rsr_keep_fraction=0.5, rsr_min_tokens=None)


@pytest.mark.parametrize(
    ("trainer_kwargs", "args"), [({}, {}), ({}, {"padding_free": True}), (LORA, {})], ids=["padded", "free", "lora"]
)
def test_online_scores_are_those_of_a_scoring_pass_when_nothing_else_differs(
    train, tiny_student, tiny_tokenizer, trainer_kwargs, args
):
    """Without dropout and with a learning rate of 0 the training forward sees what a scoring pass sees."""
    expected = scored_by(tiny_student(), tiny_tokenizer)["rsr"]
    args |= {"learning_rate": 0.0, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "max_length": None}
    trainer = train(None, trainer_kwargs, tiny_student(), rsr_rescore_strategy="online", **args)
    np.testing.assert_allclose(trainer.table.rsr, expected, rtol=1e-5)
    assert trainer.table.train_mode.all()
    assert trainer.table.step.min() == trainer.scores.steps_per_epoch  # all measured in the second epoch
    found = history(trainer)
    assert sorted(found[found["train_mode"]]["row"]) == sorted(list(range(19)) * 2)


def test_online_shows_in_the_next_epoch_and_passes_cover_only_what_did_not_train(train):
    trainer = train(rsr_rescore_strategy="online", rsr_keep_fraction=0.5, rsr_sampling="ordered")
    found, steps = history(trainer), trainer.scores.steps_per_epoch
    for epoch in (1, 2):
        trained = set(sum(source_rows(trainer, epoch - 1), []))
        of_pass = found[(found["step"] == epoch * steps) & ~found["train_mode"]]
        assert set(of_pass["row"]) == set(range(19)) - trained
        online = found[found["train_mode"] & found["step"].between((epoch - 1) * steps, epoch * steps - 1)]
        assert set(online["row"]) == trained
        scores = pd.concat([of_pass, online]).set_index("row")["rsr"]
        assert set(sum(source_rows(trainer, epoch), [])) == set(scores.nsmallest(10).index)


def test_online_in_one_epoch_is_an_error(make):
    with pytest.raises(ValueError, match="next epoch, and there is only one"):
        make(rsr_rescore_strategy="online", num_train_epochs=1)
    trainer = make(rsr_rescore_strategy="online", max_steps=4)
    with pytest.raises(ValueError, match="next epoch, and max_steps=4 ends in the first"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_logs_how_correct_ones_are_spread_over_the_problems_of_the_choice(train):
    rows = [row | {"correct": i % 2 == 0} for i, row in enumerate(examples(19))]
    trainer = train(Dataset.from_list(rows), rsr_group_column="problem", rsr_keep_per_group=2, rsr_min_tokens=0)
    logged = [log["rsr/balance"] for log in trainer.state.log_history if "rsr/balance" in log]
    for epoch, found in enumerate(logged):
        of_problem = {}
        for row in sum(source_rows(trainer, epoch), []):
            of_problem.setdefault(rows[row]["problem"], []).append(rows[row]["correct"])
        values = [sum(right) / 8 * sum(right) / len(right) for right in of_problem.values()]
        assert len(values) == 7 and found == pytest.approx(np.mean(values))
    assert len(logged) == 3 and len(set(logged)) > 1


def test_logs_say_what_the_table_says(train):
    trainer = train(rsr_teacher_column="teacher", num_train_epochs=2)
    log = [log for log in trainer.state.log_history if "rsr/mean" in log][-1]
    scores = history(trainer).pivot(index="row", columns="step", values="rsr")
    first, last = scores[0], scores[trainer.scores.steps_per_epoch]
    by_b = history(trainer).query("step > 0 and row % 3 == 1")[["rsr_mean_clipped_rank", "rsr_mean_surprisal"]]
    expected = {
        **{"mean": last.mean(), "median": last.median(), "p10": last.quantile(0.1), "p90": last.quantile(0.9)},
        **{"teacher/B": dataset_rsr(*by_b.to_numpy().T), "kept_share": 1.0},
        "spearman_with_last": last.corr(first, method="spearman"),
    }
    assert {name: log[f"rsr/{name}"] for name in expected} == pytest.approx(expected)
    tokens = sum(map(len, trainer.train_dataset["input_ids"]))
    assert log["rsr/seconds"] * log["rsr/tokens_per_second"] == pytest.approx(tokens)
    json.dumps(trainer.state.log_history)


def test_the_model_card_tells_how_the_data_was_scored_and_chosen(train):
    trainer = train(rsr_group_column="problem", rsr_teacher_column="teacher", num_train_epochs=1)
    trainer.create_model_card(model_name="out")
    card, rsr = Path(trainer.args.output_dir, "README.md").read_text(), trainer.table.rsr
    by_b = dataset_rsr(trainer.table.mean_clipped_rank[1::3], trainer.table.mean_surprisal[1::3])
    figures = (f"| median | {np.median(rsr):.4g} |", f"| teacher/B | {by_b:.4g} |")
    own = ("## Selection by RSR", "| rsr_group_column | `problem` |", "Lower means more suitable", CITATION)
    for text in (*figures, *own):
        assert text in card
    assert "trained with SFT." in card and "introduced in" not in card
    assert {"trl", "sft", "rsr"} <= set(trainer.model.model_tags)


def test_padding_free_trains_on_the_same_rows_with_the_same_losses(train, tiny_student):
    shared = {"max_length": None, "rsr_sampling": "random", "learning_rate": 0.0}
    padded, free = (train(model=tiny_student(), padding_free=value, **shared) for value in (False, True))
    assert rows_of_steps([vars(free)]) == rows_of_steps([vars(padded)])
    losses = [[float.fromhex(loss) for _, _, loss in trainer.record] for trainer in (padded, free)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    np.testing.assert_allclose(free.table.rsr, padded.table.rsr, rtol=1e-5)


def test_an_evaluation_set_may_be_called_train(train, tiny_tokenizer):
    texts = [row["prompt"] + row["completion"] for row in examples(5)]
    tokenized = Dataset.from_list([{"input_ids": tiny_tokenizer(text)["input_ids"]} for text in texts])
    arguments = {"eval_dataset": {"train": tokenized, "test": Dataset.from_list(examples(4, seed=3))}}
    trainer = train(None, arguments, num_train_epochs=1, eval_strategy="epoch")
    assert "rsr_scored" in trainer.train_dataset.column_names
    for dataset in trainer.eval_dataset.values():
        assert "rsr_scored" not in dataset.column_names
    assert {"eval_train_loss", "eval_test_loss"} <= {name for log in trainer.state.log_history for name in log}
    assert trainer.evaluate({"train": arguments["eval_dataset"]["test"]})["eval_train_loss"] > 0


def test_evaluation_in_between_sees_every_row_and_changes_nothing(train, tiny_student):
    arguments = {"eval_dataset": Dataset.from_list(examples(8, seed=5))}
    shared = {"rsr_score_threshold": 11.0, "rsr_rescore_strategy": "online"}
    # Without dropout: the evaluation's own data loader draws a random number, in SFTTrainer too.
    with_eval = train(model=tiny_student(), trainer_kwargs=arguments, eval_strategy="steps", eval_steps=3, **shared)
    without = train(model=tiny_student(), **shared)
    assert with_eval.record == without.record
    assert with_eval.table.rsr.tolist() == without.table.rsr.tolist()
    assert any("eval_loss" in log for log in with_eval.state.log_history)


class ScheduleFree(torch.optim.SGD):
    """As schedule-free optimizers do: `eval()` swaps other weights in, and a step in that mode is an error."""

    training = False

    @torch.no_grad()
    def train(self, training=True):
        for p in self.param_groups[0]["params"] if training != self.training else ():
            p.mul_(1 / 1.5 if training else 1.5)
        self.training = training

    def eval(self):
        self.train(False)

    def step(self, closure=None):
        assert self.training
        return super().step(closure)


def test_schedule_free_optimizers_are_scored_with_their_evaluation_weights(train, tiny_student, tiny_tokenizer):
    model = tiny_student()
    arguments = {"optimizers": (ScheduleFree(model.parameters(), lr=0.0), None)}
    steps = {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 1, "max_steps": 2}
    trainer = train(model=model, trainer_kwargs=arguments, per_device_train_batch_size=1, **steps)
    scored, found = np.array(scored_by(tiny_student(), tiny_tokenizer)["rsr"][:]), history(trainer)
    assert set(found["step"]) == {0, 1}  # before it began, and after a step in train mode
    np.testing.assert_allclose(found["rsr"], scored[found["row"]], rtol=1e-4)


def test_a_plain_sft_config_and_no_config_at_all(make, tmp_path, monkeypatch, student):
    trainer = make(config=SFTConfig, num_train_epochs=1)
    assert isinstance(trainer.args, RSRSFTConfig) and trainer.args.rsr_sampling == "random"
    assert trainer.args.learning_rate == DEFAULTS["learning_rate"] and trainer.args.bf16 is False
    monkeypatch.chdir(tmp_path)
    default = RSRSFTTrainer(student, train_dataset=Dataset.from_list(examples()))
    assert default.args.output_dir == "student-RSR-SFT"


def test_by_default_it_is_sft_trainer_and_scores_nothing(train, make, student_parts, caplog):
    nothing = {"rsr_sampling": "random", "rsr_rescore_strategy": "no"} | ONE_STEP
    trainer = train(None, None, *student_parts, **nothing)
    assert np.isnan(trainer.table.rsr).all() and not os.path.isdir(f"{trainer.args.output_dir}/rsr_history")
    assert "No score decides anything in this training" in caplog.text
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md")
    assert "RSR" not in card.read_text()
    caplog.clear()
    trainer = train(scored_by(*student_parts), None, *student_parts, **nothing)  # as selected: the paper's recipe
    assert "No score" not in caplog.text and "dataset's scores" not in caplog.text
    assert np.isfinite(trainer.table.rsr).all()
    trainer.create_model_card()
    assert "all of it was used, in random order" in card.read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_the_same_student_in_another_dtype_are_taken_and_said(
    make, tmp_path, tiny_student, tiny_tokenizer, caplog, dtype
):
    folder, tokenizer = str(tmp_path / "half"), tiny_tokenizer
    tiny_student().to(getattr(torch, dtype)).save_pretrained(folder)
    dataset = RSRScorer(folder, tokenizer).score(Dataset.from_list(examples()))
    assert set(dataset["rsr_student"]) == {f"{dataset['rsr_student'][0][:16]}-{dtype}"}
    args = {"rsr_sampling": "ordered", "rsr_rescore_strategy": "no"}
    trainer = make(dataset, None, AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), tokenizer, **args)
    assert trainer.table.rsr.tolist() == dataset["rsr"][:]
    assert f"scores were computed in {dtype} and are used as they are: about 1% of rounding" in caplog.text
    caplog.clear()
    rounded = tiny_student().to(getattr(torch, dtype))  # other weights than those of the float32 student
    rounded = RSRScorer(rounded, tokenizer).score(Dataset.from_list(examples()))
    trainer = make(rounded, None, tiny_student(), tokenizer, **args)
    assert np.isnan(trainer.table.rsr).all() and "aren't of this student as it is here: it is scored" in caplog.text


def test_a_normal_run_prints_no_warnings(make, caplog):
    chats = as_trl_format(Dataset.from_list(examples()), as_chat=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(chats, rsr_rescore_strategy="steps", rsr_rescore_steps=4).train()
    assert [str(w.message) for w in caught if "rsr" in f"{w.filename}{w.message}".lower()] == []
    # TRL's own, because the fixture's model has no eos_token_id
    assert [r for r in caplog.records if r.levelname == "WARNING" and "PAD/BOS/EOS" not in r.message] == []


@pytest.mark.slow
def test_torch_compile(student, tmp_path):
    args = {"torch_compile": True, "torch_compile_backend": "aot_eager", "num_train_epochs": 2}
    plain = run(student, str(tmp_path / "plain"), examples(9), args, plain=True)
    torch._dynamo.reset()
    ours = run(student, str(tmp_path / "ours"), examples(9), args | {"rsr_sampling": "random"})
    assert ours["record"] == plain["record"]
    assert np.isfinite(ours["table"]).all() and min(ours["steps_measured"]) == 5


def test_broken_logits_are_an_error_before_the_first_step(make, tiny_student):
    model = tiny_student()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    trainer = make(model=model)
    with pytest.raises(ValueError, match="logits are broken"):
        trainer.train()
    assert trainer.record == []


def with_changes(i: int, **values) -> list[dict]:
    return [row | values if j == i or i < 0 else row for j, row in enumerate(examples())]


@pytest.mark.parametrize(
    ("rows", "args", "message"),
    [
        (with_changes(0, prompt="é" * 10), {}, "token id 2.., but the student knows 100 ids"),
        ([], {}, "empty"),
        (with_changes(-1, prompt="x" * 60), {"max_length": 20}, "No example is left"),
        (with_changes(3, problem=None), {"rsr_group_column": "problem"}, "'problem' is null in 1 of 19 rows"),
        (examples(), {"rsr_group_column": "task"}, "no column 'task'"),
        (examples(), {"rsr_teacher_column": "who"}, "no column 'who'"),
        ([{"prompt": row["prompt"]} for row in examples()], {}, "no `completion`"),
        (with_changes(-1, image="x.png"), {}, "only text is scored"),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}], {}, "already tokenized"),
    ],
)
def test_bad_input_is_a_clear_error_before_the_first_step(make, tiny_student, rows, args, message):
    model = tiny_student(vocab_size=100) if "knows 100" in message else None
    with pytest.raises(ValueError, match=message):
        make(Dataset.from_list(rows), model=model, **args)


def test_datasets_and_collators_that_cannot_be_ordered_are_refused(make):
    with pytest.raises(TypeError, match="IterableDataset.*without streaming"):
        RSRSFTTrainer("any", train_dataset=Dataset.from_list(examples()).to_iterable_dataset())
    with pytest.raises(ValueError, match="function.*derive the data collator from RSRDataCollator"):
        make(trainer_kwargs={"data_collator": lambda rows: rows})
    own = {"data_collator": RSRDataCollator(pad_token_id=0, score_threshold=3.0)}
    with pytest.raises(ValueError, match="set it in the config alone"):
        make(trainer_kwargs=own, rsr_score_threshold=4.0)


def test_a_checkpoint_of_another_trainer_is_refused(make, student, tmp_path):
    plain = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    run(student, str(tmp_path / "plain"), examples(), plain, plain=True)
    with pytest.raises(ValueError, match="rsr_scores.safetensors is missing"):
        make().train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
