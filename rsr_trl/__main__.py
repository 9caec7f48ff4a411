"""`python -m rsr_trl` is the `rsr` command: what `accelerate launch -m rsr_trl ...` starts."""

import sys

from rsr_trl.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
