"""The trainer says at preparation what its chat template leaves out, and trains on the same ids as SFTTrainer."""

from datasets import Dataset


def rows_of(key: str) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{i}+1?"},
                {"role": "assistant", "content": f"{i + 1}", key: "why"},
            ]
        }
        for i in range(4)
    ]


def test_lost_reasoning_is_said_at_preparation(make, caplog):
    make([*rows_of("reasoning_content"), *rows_of("name")])
    (said,) = (record.message for record in caplog.records if "lose" in record.message)
    assert said.startswith("4 of 8 trajectories lose their reasoning in the student's chat template.")


def test_nothing_is_said_where_nothing_is_lost(make, caplog):
    make(rows_of("name"))
    assert "lose" not in caplog.text


def test_parts_with_nulls_train_as_the_text(make, tiny_tokenizer):
    """Arrow gives every part an `image_url`, which this template takes for an image."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
        "{% if 'image_url' in part %}<|unused|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tiny_tokenizer.chat_template = template
    image, text = {"type": "image_url", "image_url": {"url": "a"}}, {"type": "text", "text": "four"}
    user, answer = {"role": "user", "content": [image]}, {"role": "assistant", "content": [text]}
    dataset = Dataset.from_list([{"messages": [user, answer]}] * 4, on_mixed_types=None)
    assert "image_url" in dataset[0]["messages"][1]["content"][0]
    trainer = make(dataset, tokenizer=tiny_tokenizer, trainer_kwargs={"eval_dataset": dataset})
    for prepared in (trainer.train_dataset, trainer.eval_dataset):
        text = "<|im_start|>user\n<|unused|><|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
        assert tiny_tokenizer.decode(prepared[0]["input_ids"]) == text
