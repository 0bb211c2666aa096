"""What the weights and the `.keras` file of a `Pretrainer` hold beside what Keras writes by itself."""

import keras
import numpy as np
from keras import ops


class Saving:
    """Mixin of the `Pretrainer`: random states are saved with the weights, and its parts with the configuration."""

    def _seed_states(self):
        return [v for v in self.non_trainable_variables if "seed_generator_state" in v.path]

    def save_own_variables(self, store):
        """Adds the random states of the layers to the weights, which Keras leaves out of them."""
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_{i}"] = ops.convert_to_numpy(state.value)

    def load_own_variables(self, store):
        states = self._seed_states()
        for i, state in enumerate(states):
            if f"seed_{i}" in store:
                state.assign(np.asarray(store[f"seed_{i}"]))
        own = {key: store[key] for key in store.keys() if not key.startswith("seed_")}  # noqa: SIM118  an HDF5 view
        super().load_own_variables(own)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        augmentation = None if self.augmentation is None else serialize(self.augmentation)
        probe = {} if self.online_probe is None else {"online_probe": serialize(self.online_probe)}
        return {
            "name": self.name,
            "encoder": serialize(self.encoder),
            "objective": serialize(self.objective),
            "augmentation": augmentation,
            **probe,
            "seed": self.seed,
            **({} if self._remat is None else {"remat": True}),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("encoder", "objective", "augmentation", "online_probe"):
            if name not in config:
                continue
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)
