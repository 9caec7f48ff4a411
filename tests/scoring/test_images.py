"""Rows with images: tokens as TRL's collator makes them, scores as the model's full logits in float64 give them."""

import copy
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Json, List, Value
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rsr_trl.pilot.held_out import HeldOut
from rsr_trl.rsr import CONTENT, ERROR, RSR, STUDENT
from rsr_trl.scoring.images import SeeingTokenizer
from rsr_trl.scoring.pictures import tokens_of_images
from rsr_trl.scoring.rows import undecoded, windows
from rsr_trl.scoring.scorer import RSRScorer
from tests.scoring.seeing import FAMILIES, build, picture
from tests.scoring.truth import Truth


def user(*parts: str | None) -> dict:
    """`None` is an image."""
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def says(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


ONE, OTHER, WIDE = picture(0), picture(1), picture(2, 60, 44)
MESSAGES = [
    {"images": [ONE], "messages": [user(None, "What\n?"), says("A cat, is it good?")]},
    {
        "images": [ONE, WIDE],
        "messages": [user("1", None, "\n\n2", None, "\n"), says("Both."), user("So?"), says("Yes.")],
    },
    {"images": [], "messages": [user("No picture"), says("None here.")]},
    {
        "images": [WIDE, OTHER],
        "messages": [user("First", None), says("Seen it."), user(None, "\nNow"), says("Too.\nOh")],
    },
]
SAID = ["A cat, is it good?", "Both.Yes.", "None here.", "Seen it.Too.\nOh"]


def strings(row: dict) -> dict:
    """Contents without parts: the image goes before the first user's text."""
    messages = [{**m, "content": "".join(p.get("text", "") for p in m["content"])} for m in row["messages"]]
    return {"images": row["images"], "messages": messages}


def formats(processor) -> dict[str, tuple[list[dict], list[str]]]:
    """Rows of each format, and what is scored in them."""
    place = getattr(processor, "boi_token", processor.image_token)
    plain = [(f"Look: {place} yes\n", "So it is.", [ONE]), ("Without", "oo", [])]
    return {
        "messages": (MESSAGES, SAID),
        "strings": ([strings(MESSAGES[0]), strings(MESSAGES[2])], [SAID[0], SAID[2]]),
        "chats": (
            [
                {"images": r["images"], "prompt": r["messages"][:1], "completion": r["messages"][1:2]}
                for r in MESSAGES[:3]
            ],
            ["A cat, is it good?", "Both.", "None here."],
        ),
        "plain": (
            [dict(zip(("prompt", "completion", "images"), row, strict=True)) for row in plain],
            ["So it is.", "oo"],
        ),
        "image": ([{"image": image, "messages": MESSAGES[0]["messages"]} for image in (ONE, WIDE)], [SAID[0]] * 2),
    }


@pytest.fixture(scope="module", params=FAMILIES)
def student(request):
    return build(request.param)


def collate(processor, rows: list[dict]) -> dict[str, torch.Tensor]:
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss="prompt" in rows[0])
    return collator(copy.deepcopy(rows))


@pytest.mark.parametrize("name", ["messages", "strings", "chats", "plain", "image"])
def test_tokens_and_tensors_are_those_of_the_collator(student, name):
    processor = student[1]
    rows, said = formats(processor)[name]
    examples = SeeingTokenizer(processor, processor.tokenizer)(rows)
    batch = collate(processor, rows)
    for row, example, text, ids, mask, labels in zip(
        rows, examples, said, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        assert example.error is None
        assert example.input_ids.tolist() == ids[mask == 1].tolist()
        assert (labels[mask == 1].numpy() != -100)[example.scored].all()
        assert processor.tokenizer.decode(example.input_ids[example.scored]) == text
        if example.pictures:
            alone = collate(processor, [row])
            for key, tensor in example.pictures.tensors.items():
                torch.testing.assert_close(tensor, alone[key], rtol=0, atol=0)
            for key, kinds in example.pictures.token_kinds.items():
                assert kinds.tolist() == alone[key][0].tolist()


def truth(model, processor, row: dict) -> Truth:
    """From the collator's own batch of one row, by the model's own forward in float64."""
    example = SeeingTokenizer(processor, processor.tokenizer)([row])[0]
    places = np.flatnonzero(example.scored)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in collate(processor, [row]).items()}
    inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[0, places - 1]
    return Truth(logits, torch.tensor(example.input_ids[places]).long())


def dataset_of(rows: list[dict]) -> Dataset:
    kinds = {"images": List(Image()), "image": Image(), "teacher": Value("string")}
    return Dataset.from_list(rows, features=Features({name: kinds.get(name, List(Json())) for name in rows[0]}))


def test_scores_are_those_of_full_logits_in_float64(student):
    model, processor = student
    rows = [
        *MESSAGES,
        # The same picture and question again, another picture of the same size, and two of unlike sizes.
        {"images": [ONE], "messages": [user(None, "What\n?"), says("A dog, and no cat at all.")]},
        {"images": [OTHER], "messages": [user(None, "What\n?"), says("A cat, is it good?")]},
        {"images": [picture(3, 100, 30)], "messages": [user(None, "What\n?"), says("Long")]},
    ]
    scored = RSRScorer(model, processor, token_stats=True).score(dataset_of(rows))
    exact = copy.deepcopy(model).double()
    for row, values in zip(rows, scored, strict=True):
        expected = truth(exact, processor, row)
        expected.assert_ranks(values["rsr_token_ranks"], rounding=1e-4)
        np.testing.assert_allclose(values["rsr_token_surprisals"], expected.surprisals, rtol=1e-5, atol=1e-5)
        assert values[RSR] == pytest.approx(expected.rsr(), rel=1e-5)
    assert scored[0][RSR] != scored[5][RSR] and scored[0][CONTENT] != scored[5][CONTENT]  # the picture alone differs


def test_a_picture_is_looked_at_once_for_all_teachers(student):
    model, processor = student
    teachers = ["I see it.", "I see a thing here.", "Nothing!", "It is so good to see it, so good."]
    rows = [
        {"images": [picture(k)], "messages": [user(None, "What do you see in this picture?"), says(text)]}
        for k in range(3)
        for text in teachers
    ]
    seen = []
    scorer = RSRScorer(model, processor)
    scorer.score(dataset_of(rows[:1]))  # verifies the student
    tower = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: (seen.append(1), tower(*args, **kwargs))[1]
    try:
        shared = scorer.score(dataset_of(rows))[RSR]
        assert len(seen) == 3
        alone = RSRScorer(model, processor, share_prefixes=False).score(dataset_of(rows))[RSR]
    finally:
        del model.model.get_image_features
    padded = RSRScorer(model, processor)
    padded.student.layout = "padded"  # as on a GPU
    np.testing.assert_allclose(shared, alone, rtol=1e-6)
    np.testing.assert_allclose(padded.score(dataset_of(rows))[RSR], alone, rtol=1e-6)


def png(image) -> bytes:
    image.save(out := io.BytesIO(), "PNG")
    return out.getvalue()


BAD = {
    "the image can't be read: it isn't in a format that Pillow knows": [{"bytes": b"no image", "path": None}],
    "the image can't be read: image file is truncated": [{"bytes": png(ONE)[:300], "path": None}],
    "the image can't be read: .Errno 2. No such file": [{"bytes": None, "path": "/nowhere/a.png"}],
    "the image is missing": [None],
    "image 2 of 2 is missing": [ONE, None],
    "images is null, expected a list": None,
    "there are more or fewer images than places for them in the messages .*images provided .2. .* placeholders .1.": [
        ONE,
        ONE,
    ],
    "more or fewer images": [],
}


def test_a_bad_image_is_null_with_its_reason_and_the_rest_is_unharmed(student):
    scorer, good = RSRScorer(*student), MESSAGES[0]
    rows = [good, *({**good, "images": images} for images in BAD.values()), MESSAGES[1]]
    dataset = dataset_of(rows)
    expected = scorer.score(dataset_of([good, MESSAGES[1]]))[RSR]
    for scored in (scorer.score(dataset), dataset.map(scorer), dataset.map(scorer, batched=True)):
        errors = scored[ERROR]
        for error, reason in zip(errors[1:-1], BAD, strict=True):
            assert re.search(reason, error)
        assert errors[0] is errors[-1] is None
        np.testing.assert_allclose([scored[0][RSR], scored[-1][RSR]], expected, rtol=1e-6)
        assert scored.features == scorer.score(dataset).features and scored.num_rows == len(rows)


def test_a_row_that_does_not_fit_is_null_and_never_cut(student):
    model, processor = student
    huge = {"images": [picture(0, 400, 400)] * 2, "messages": [user(None, None, "x" * 90), says("yes")]}
    scored = RSRScorer(model, processor, max_length=100).score(dataset_of([MESSAGES[0], huge]))
    assert scored[0][ERROR] is None and not any(scored["rsr_truncated"])
    assert "longer than max_length=100 and can't be cut (whole: " in scored[1][ERROR]


def test_parts_that_the_trainer_would_not_train_on_are_refused(student):
    tokenizer = SeeingTokenizer(student[1], student[1].tokenizer)
    url = {"role": "user", "content": [{"type": "image", "url": "https://a.b/c.png"}]}
    video = {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}
    wrong = [[url, says("a")], [video, says("a")], [{"role": "developer", "content": "x"}, user("y"), says("a")]]
    errors = [e.error for e in tokenizer([{"images": [], "messages": messages} for messages in wrong])]
    assert "its own 'url'" in errors[0] and "type 'video'" in errors[1] and "developer" in errors[2]


class TestWholeStudents:
    @pytest.fixture
    def path(self, tmp_path) -> str:
        for part in build("llava"):
            part.save_pretrained(tmp_path / "student")
        return str(tmp_path / "student")

    def test_a_named_student_scores_as_a_live_one_and_map_is_cached(self, path):
        dataset, live = dataset_of(MESSAGES), RSRScorer(*build("llava"))
        scorer = RSRScorer(path)
        scored = scorer.score(dataset)
        assert scored[RSR] == live.score(dataset)[RSR] and scored[STUDENT] == live.score(dataset)[STUDENT]
        assert scored.features["images"] == List(Image())
        first = dataset.map(scorer)
        assert first[RSR] == pytest.approx(scored[RSR], rel=1e-6) and first[STUDENT] == scored[STUDENT]
        stream = list(scorer.score(dataset.to_iterable_dataset()))
        assert [row[RSR] for row in stream] == pytest.approx(scored[RSR], rel=1e-6)
        for again in (scorer, RSRScorer(path)):  # after rows with images, and before any
            assert dataset.map(again)._fingerprint == first._fingerprint

    def test_the_processor_is_part_of_the_student(self):
        model, processor = build("llava")
        other = copy.deepcopy(processor)
        other.image_processor.image_mean = [0.1, 0.2, 0.3]
        dataset, text = dataset_of(MESSAGES[:1]), Dataset.from_list([{"prompt": "a", "completion": "b"}])
        one, two = (RSRScorer(model, p) for p in (processor, other))
        assert one.score(dataset)[0][STUDENT] != two.score(dataset)[0][STUDENT]
        assert one.score(dataset)[0][RSR] != two.score(dataset)[0][RSR]
        # Rows without an image column are scored as by the tokenizer alone.
        names = [scorer.score(text)[0][STUDENT] for scorer in (one, two, RSRScorer(model, processor.tokenizer))]
        assert len(set(names)) == 1

    def test_what_is_not_supported_is_refused_by_name(self, tiny_student, tiny_tokenizer):
        model, processor = build("llava")
        dataset = dataset_of(MESSAGES[:1])
        with pytest.raises(ValueError, match="column 'images'.*this student can't see"):
            RSRScorer(tiny_student(), tiny_tokenizer).score(dataset)
        with pytest.raises(ValueError, match="pass the student's processor"):
            RSRScorer(model, processor.tokenizer).score(dataset)
        with pytest.raises(ValueError, match=r"the scores \['ifd', 'lalp'\] read parts of a trajectory"):
            RSRScorer(model, processor, scores=["ifd", "surprisal", "lalp"]).score(dataset)
        one = MESSAGES[0] | {"image": ONE}
        for row, message in (
            (one, "both columns"),
            (MESSAGES[0] | {"tools": []}, "'tools', which SFTTrainer doesn't read"),
            ({"images": [], "text": "a"}, "needs either `messages`"),
            ({"images": [], "prompt": "a", "completion": "b", "messages": []}, "needs either `messages`"),
        ):
            with pytest.raises(ValueError, match=message):
                RSRScorer(model, processor)(row)

    def test_what_reads_text_alone_refuses_images(self):
        with pytest.raises(ValueError, match="A pilot takes text alone, and the held-out set has images .*'images'"):
            HeldOut(dataset_of(MESSAGES))

    def test_other_images_are_not_opened(self, tiny_student, tiny_tokenizer):
        """A column that nobody looks at may hold broken ones."""
        features = Features({"prompt": Value("string"), "completion": Value("string"), "photo": Image()})
        rows = [{"prompt": "a", "completion": "bc", "photo": {"bytes": b"no image", "path": None}}]
        dataset, scorer = Dataset.from_list(rows, features=features), RSRScorer(tiny_student(), tiny_tokenizer)
        for scored in (scorer.score(dataset), dataset.map(scorer), dataset.map(scorer, batched=True)):
            assert scored.select_columns([RSR])[0][RSR] > 0


def test_text_imports_nothing_for_images(tiny_student_path):
    code = (
        "import sys; from rsr_trl import RSRScorer;"
        f"RSRScorer({tiny_student_path!r})({{'prompt': 'a', 'completion': 'bc'}});"
        "print([n for n in sys.modules if n.startswith(('torchvision', 'rsr_trl.scoring.images'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_windows_hold_little_more_than_their_share_of_images():
    """Each of 24 rows with a picture of its own, but for two that share one, which counts once."""
    processor = build("llava")[1]
    rows = [{**MESSAGES[0], "images": [picture(max(k, 1))]} for k in range(24)]
    dataset = undecoded(dataset_of(rows))
    tokenize = SeeingTokenizer(processor, processor.tokenizer)
    one = tokens_of_images([tokenize(rows[:1])[0].pictures])
    tokens = len(tokenize(rows[:1])[0].input_ids)
    found = list(windows(dataset, tokenize, 4 * (one + tokens), rows_at_once=2))
    assert [len(window.examples) for window in found] == [6, 4, 4, 4, 4, 2]
