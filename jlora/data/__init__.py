"""Text for the trainer: conversations, their tokens, and batches of few shapes.

``rows, held_out = hold_out(read_rows(path), 100, seed=0)``;
``examples, report = encode(rows, tokenizer, max_length=256)``;
``batches = Batches(examples, batch_size=16, seed=0)``, or ``PackedBatches``; ``batches(step)``.
"""

from jlora.data._batches import Batch as Batch
from jlora.data._batches import Batches as Batches
from jlora.data._digest import Digest as Digest
from jlora.data._digest import digest as digest
from jlora.data._encode import EncodeReport as EncodeReport
from jlora.data._encode import answerable as answerable
from jlora.data._encode import encode as encode
from jlora.data._examples import Examples as Examples
from jlora.data._labelled import Labelled as Labelled
from jlora.data._labelled import LabelledBatches as LabelledBatches
from jlora.data._labelled import LabelReport as LabelReport
from jlora.data._labelled import encode_labelled as encode_labelled
from jlora.data._labelled_rows import labels_of as labels_of
from jlora.data._labelled_rows import open_labelled as open_labelled
from jlora.data._labelled_rows import read_labelled as read_labelled
from jlora.data._messages import Messages as Messages
from jlora.data._messages import text_of as text_of
from jlora.data._messages import without_reasoning as without_reasoning
from jlora.data._mixed import Mixed as Mixed
from jlora.data._mixed import mixed as mixed
from jlora.data._on_disk import Rows as Rows
from jlora.data._on_disk import open_rows as open_rows
from jlora.data._packed_batches import PackedBatches as PackedBatches
from jlora.data._preview import preview as preview
from jlora.data._rows import hold_out as hold_out
from jlora.data._rows import read_rows as read_rows
from jlora.data._turn import Example as Example
