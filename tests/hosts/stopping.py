"""A command whose second process is stopped while the first one waits for it at a barrier."""

import os
import signal
import sys

import jax

from jlora import finetune, trainer


def train(asked, run):
    run.begin({"settings": asked.settings.flat()})
    if jax.process_index() == 1:
        print(os.getpid(), file=sys.__stdout__, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    trainer.by_first("the barrier", lambda: None)


if __name__ == "__main__":
    sys.exit(finetune.main(train, command="python stopping.py"))
