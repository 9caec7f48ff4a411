"""`rsr score` says what the student's chat template leaves out of trajectories, and what can be done."""

import json

import pytest

from tests.scoring.conversations import TEMPLATES, assistant, user


@pytest.mark.parametrize(("template", "offered"), [("qwen3", True), ("gemma4_v5", False)])
def test_training_template_is_offered_where_there_is_one(template, offered, rsr, tiny_student_path, tmp_path):
    (tmp_path / "template.jinja").write_text(TEMPLATES[template])
    rows = [{"messages": [user("1+1?"), assistant("2", reasoning_content="why"), user("q"), assistant("a")]}] * 2
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["score", "--model_name_or_path", tiny_student_path, "--dataset_name", str(tmp_path / "raw.jsonl")]
    command += ["--chat_template_path", str(tmp_path / "template.jinja"), "--output_dir", str(tmp_path / "out")]
    text = rsr(*command).text
    assert "2 of 2 trajectories lose their reasoning of earlier turns" in text
    assert ("or TRL's training template (--assistant_only_loss)" in text) == offered


def test_lost_reasoning_in_the_summary(rsr, tiny_student_path, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", **key}]}
        for key in ({"reasoning_content": "why"}, {}, {})
    ]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["score", "--model_name_or_path", tiny_student_path, "--dataset_name", str(tmp_path / "raw.jsonl")]
    refused = rsr(*command, "--output_dir", str(tmp_path / "refused"), "--on_error", "raise")
    assert refused.code != 0 and "Row 0 loses its reasoning in the student's chat template" in refused.text
    done = rsr(*command, "--output_dir", str(tmp_path / "out"))
    assert "1 of 3 trajectories lose their reasoning in the student's chat template" in done.text
    assert "To keep it, score and train with another chat template (--chat_template_path)" in done.text
    again = rsr(*command, "--output_dir", str(tmp_path / "out"), "--json")
    assert again.json["notes"] == {"reasoning": 1}
    assert "1 of 3 trajectories lose" in rsr(*command, "--output_dir", str(tmp_path / "no"), "--dry_run").text
