"""`rsr sft` on several processes, with one of TRL's predefined accelerate configurations.

    python examples/launch_sft.py fsdp2 --num_processes 2 -- --model_name_or_path Qwen/Qwen3-0.6B \\
        --dataset_name trajectories.jsonl --output_dir out

Names: single_gpu, multi_gpu, fsdp1, fsdp2, and zero1, zero2, zero3 (with the extra `deepspeed`). What follows `--`
are the options of `rsr sft`. To change a configuration, copy the file that is printed, and use
`accelerate launch --config_file your.yaml -m rsr_trl sft ...`.
"""

import argparse
import subprocess
import sys
from importlib.resources import files


def command(name: str, launch_options: list[str], sft_options: list[str]) -> list[str]:
    """The `accelerate launch` command for a predefined configuration."""
    config = files("trl.accelerate_configs").joinpath(f"{name}.yaml")
    if not config.is_file():
        names = sorted(path.name.removesuffix(".yaml") for path in config.parent.iterdir() if path.suffix == ".yaml")
        raise SystemExit(f"There is no configuration {name!r}. Choose one of: {', '.join(names)}.")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *launch_options]
    return [*launch, "--module", "rsr_trl", "sft", *sft_options]


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(usage="%(prog)s NAME [options of accelerate launch] -- [options of rsr sft]")
    parser.add_argument("name")
    arguments, launch_options = parser.parse_known_args(sys.argv[1:split])
    to_run = command(arguments.name, launch_options, sys.argv[split + 1 :])
    print(" ".join(to_run), file=sys.stderr)
    sys.exit(subprocess.run(to_run).returncode)
