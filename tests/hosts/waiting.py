"""A command whose second process dies while the first one trains."""

import os
import signal
import sys
import time

import jax

from jlora import finetune


def train(asked, run):
    run.begin({"settings": asked.settings.flat()})
    print("training", flush=True)
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(200)


if __name__ == "__main__":
    sys.exit(finetune.main(train))
