"""Run by torchrun in a test: one stage of the toy family. Arguments: config as JSON, stage, data reference."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from stageline.errors import StagelineError
from stageline.families import FAMILIES, parse_config
from stageline.verbs.train import train_stage


def report_step(task: Any) -> None:
    """Leave a file once training runs, so that the test knows when to send its signal."""

    def on_loss(summed: Any, context: Any) -> Any:
        if context.step == 3 and os.environ["RANK"] == "0":
            Path(os.environ["TOY_RUNNING_FILE"]).touch()
        return summed

    task.on_loss = on_loss


def main() -> None:
    FAMILIES["toy"] = "toy_family"
    from toy_family import family

    family.CHANGE[:] = [report_step]
    try:
        train_stage(parse_config(json.loads(sys.argv[1])), sys.argv[2], data=sys.argv[3])
    except StagelineError as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
