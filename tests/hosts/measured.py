"""train.py of which the last process gets SIGTERM in the measurement numbered SIGNALLED.

The first is before training.
"""

import itertools
import os
import signal
import sys
import time

import jax

import train
from jlora import trainer

whole, count = trainer.mean_loss, itertools.count(1)


def signalled(*args):
    last = jax.process_index() == jax.process_count() - 1
    if last and next(count) == int(os.environ["SIGNALLED"]):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # a measurement as long as a user's
    return whole(*args)


if __name__ == "__main__":
    trainer.mean_loss = signalled
    sys.exit(train.main())
