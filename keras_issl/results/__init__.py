"""Numbers with their protocol: a `Result` is one JSON an evaluation; `table` refuses columns of unlike numbers."""

from keras_issl.environment import hardware, versions
from keras_issl.results.origin import representation
from keras_issl.results.result import Result
from keras_issl.results.schema import json_value
from keras_issl.results.tables import table

__all__ = ["Result", "hardware", "json_value", "representation", "table", "versions"]
