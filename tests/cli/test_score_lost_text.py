"""`rsr score` says what the student's chat template leaves out of trajectories, and what can be done."""

import json


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
