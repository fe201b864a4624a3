"""Commands in one of several processes under torchrun, where a picture may end its process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from matssl import baselines
from matssl.core.errors import guard

ROOT = Path(__file__).resolve().parent.parent


def launched(commands: list[list[str]], deadly: str = "") -> subprocess.CompletedProcess[str]:
    """Run commands one after the other in two processes under torchrun.

    Args:
        commands: module and arguments of each.
        deadly: name of the picture that kills the process which predicts it.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, __file__, json.dumps(commands), deadly],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=300,
    )


def main(commands: list[list[str]], deadly: str) -> int:
    """Run the commands in this process; return the exit code of the first that fails."""
    # As in the session of the tests.
    baselines.TREES, baselines.SAMPLES = 5, 500  # type: ignore[misc]
    baselines.PIXELS_PER_IMAGE = 400  # type: ignore[misc]
    if deadly:
        from matssl.stages.evaluate import predict

        before = predict._one_image

        def one_image(settings: Any, folder: Any, inputs: Any, pair: Any, *args: Any) -> Any:
            if pair.image.name == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(settings, folder, inputs, pair, *args)

        predict._one_image = one_image
    for module, *argv in commands:
        code = guard(importlib.import_module(module).main, argv)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2]))
