"""A run folder: what was asked for, what happened, and the encoder that came of it.

```
run.json         recipe, what was overridden and what followed, data fingerprint, versions, how it ended
history.csv      one line an epoch
records.csv      a row every few steps: logs, learning rate, speed, what the representation is like
curves.png       the history as a picture
report.html      the page of the run: curves, verdicts, views, neighbours
checkpoints/     the last two states of the run, from which it can go on
last_good.weights.h5, after a loss that was not a number: the weights from before
tensorboard/     and others, with loggers; their ids in loggers.json
preset/          the encoder and its objective, for `from_preset`
lock             held while a process works in the folder
```
"""

from keras_issl.runs.folder import checkpoints, locked_folder
from keras_issl.runs.page import make_page, read
from keras_issl.runs.training import Result, check_size, pretrain

__all__ = ["Result", "check_size", "checkpoints", "locked_folder", "make_page", "pretrain", "read"]
