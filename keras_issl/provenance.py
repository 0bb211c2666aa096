"""Where an encoder's weights come from: noted when it is loaded or trained, carried by its features."""

import weakref
import zlib

import keras
import numpy as np

_LASTING = {"probe"}  # stays true when the encoder is trained further
_notes = weakref.WeakKeyDictionary()  # encoder -> (facts, checksum of its weights)


def note(encoder, **facts):
    """Notes what is known of an encoder's weights. `features.extract_features` puts it into the provenance.

    Args:
        encoder: A `keras.Model`.
        **facts: Strings; None is left out. `probe`, the probe family that its objective is for, stays true when it is
            trained further. All others, such as `preset` and `weights_sha256`, are of the present weights alone.

    Example:

    >>> keras_issl.provenance.note(encoder, probe="linear", preset="hf://me/cells@v1")
    >>> keras_issl.provenance.of(encoder)["probe"]
    'linear'
    """
    known = {name: fact for name, fact in facts.items() if fact is not None}
    kept = {name: fact for name, fact in of(encoder).items() if name not in known}
    _notes[encoder] = ({**kept, **known}, _checksum(encoder) if {**kept, **known}.keys() - _LASTING else None)


def of(encoder):
    """What was noted of an encoder, as a dict; of one whose weights have changed since, the probe family alone."""
    facts, checksum = _notes.get(encoder, ({}, None))
    if checksum is not None and _checksum(encoder) != checksum:
        return {name: fact for name, fact in facts.items() if name in _LASTING}
    return dict(facts)


def probe_family(objective):
    """`"linear"`, `"mlp"` or `"custom"`: the probe that an objective's student head belongs to; None without any."""
    probe = getattr(objective, "probe", None)
    return probe if probe is None or isinstance(probe, str) else "custom"


def _checksum(encoder):
    """CRC-32 of all weights: it tells a change, not a forgery, in 0.1 s for a ResNet-50."""
    total = 0
    for weight in encoder.weights:
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).reshape(-1)
        total = zlib.crc32(values.view(np.uint8), total)
    return total
