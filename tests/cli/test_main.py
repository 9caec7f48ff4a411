import os
import subprocess
import sys

import pytest

import rsr_trl
from rsr_trl.cli import main as cli
from rsr_trl.cli.main import COMMANDS, main


def test_help_lists_every_command_with_what_it_does(capsys):
    assert main([]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, purpose in COMMANDS.items():
        assert f"{name} {purpose}" in text
    assert "lower RSR suits the student better" in text


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["select", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    code = f"import sys; from rsr_trl.cli.main import main\ntry: main({arguments})\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: rsr" in done.stdout
    assert not {"torch", "datasets", "transformers"} & set(done.stdout.splitlines()[-1].split())


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "rsr_trl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"rsr-trl {rsr_trl.__version__}"


@pytest.mark.parametrize(
    "word, said",
    [("scoer", "'scoer'. Did you mean score?"), ("--model_name_or_path", "rsr <command> --model_name")],
)
def test_unknown_command_names_the_known_ones(capsys, word, said):
    with pytest.raises(SystemExit) as stop:
        main([word, "student"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and all(name in error for name in COMMANDS)


def test_an_error_of_ours_is_one_message_and_can_be_traced(rsr, monkeypatch):
    argv = ["select", "--dataset_name", "./absent.jsonl", "--output_dir", "out"]
    done = rsr(*argv)
    assert (done.code, done.out) == (1, "")
    assert done.err == "rsr select: error: There is no file or folder './absent.jsonl'.\n"
    monkeypatch.setenv("RSR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no file or folder"):
        rsr(*argv)


@pytest.mark.parametrize("error", [ValueError("a defect"), BrokenPipeError("a process has gone"), KeyboardInterrupt()])
def test_a_defect_keeps_its_traceback_and_an_interruption_has_the_exit_code_of_a_shell(rsr, monkeypatch, error):
    def run(name, argv):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    if isinstance(error, KeyboardInterrupt):
        assert rsr("score").code == 130
    else:
        with pytest.raises(type(error), match=str(error)):
            rsr("score")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [["--help"], ["teachers", "--json"], ["show", "--row", "0"]])
def test_a_full_disk_is_told_once(scored_path, command):
    options = [] if command == ["--help"] else ["--dataset_name", scored_path]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rsr_trl", *command, *options], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def _unread(*argv: str, closed: str = "stdout") -> tuple[int, str]:
    """Exit code of `rsr` in a process whose output nobody reads, as behind `| true`, and what it says elsewhere."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # a short output is then written when the process ends
    process = subprocess.Popen([sys.executable, "-m", "rsr_trl", *argv], **pipes, text=True, env=environment)
    getattr(process, closed).close()
    told = (process.stderr if closed == "stdout" else process.stdout).read()
    return process.wait(), told


def test_output_that_nobody_reads_is_no_error(scored_path):
    assert _unread("--help") == (141, "")
    assert _unread("teachers", "--dataset_name", scored_path, "--json") == (141, "")
    code, told = _unread("compare", "--dataset_name", scored_path, closed="stderr")
    assert (code, told) == (141, "")
