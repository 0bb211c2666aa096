"""What `publish_zoo.py` makes sure of: who may publish, and that a preset computes what PyTorch does."""

import importlib.metadata

import keras
import numpy as np
import torch
import torch_resnet  # in tests/

import keras_issl
from keras_issl import datasets
from keras_issl.zoo import conversion, hub, hub_errors, layout

TOLERANCE = 1e-5  # largest difference to PyTorch allowed, as a share of the largest feature
PACKAGES = {"jax": ["jax"], "tensorflow": ["tensorflow", "tensorflow-cpu"], "torch": []}
IMAGES = 2000  # among which the card's picture finds neighbours


def largest_difference(folder, release):
    """How far a preset's features are from those of plain PyTorch with the tensors of the release file.

    Args:
        folder: Path of the preset folder. It has to give its own golden features first.
        release: Path of the release file.

    Returns:
        A pair: the largest difference as a share of the largest feature, of two golden and two random pictures each;
        and words for which pictures these were.
    """
    encoder = keras_issl.from_preset(folder, verify=True)
    state, _ = conversion.read_checkpoint(release)
    width, _, _, kernel = state["conv1.weight"].shape
    dim = len(state["resizer.conv3.weight"]) if "resizer.conv3.weight" in state else None
    shape = {"width": width, "kernel": kernel, "pool": kernel == 7}
    network = torch_resnet.make(encoder.get_config()["variant"], dim, **shape)
    wrong = network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    wrong = [name for names in wrong for name in names if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(f"the release file and the plain PyTorch network do not have the same tensors: {wrong[:5]}")
    with np.load(folder / layout.GOLDEN) as archive:
        golden, recorded = archive["images"], archive["features"]
    noise = np.random.default_rng(0).integers(0, 256, golden.shape).astype("uint8")  # (2, S, S, 3)
    pairs = [(recorded, network.features(golden))]
    pairs += [(encoder.predict(x, batch_size=len(x), verbose=0), network.features(x)) for x in (golden, noise)]
    differences = [np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]
    height, width = golden.shape[1:3]
    return float(np.max(differences)), f"{len(golden)} golden and {len(noise)} random ones, {height} x {width} pixels"


def versions():
    """Versions of what computed the features, a dict of strings."""
    backend = keras.config.backend()
    found = {"keras_issl": keras_issl.__version__, "keras": keras.__version__, "torch": None, "backend": backend}
    for package in ("torch", *PACKAGES[backend]):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # TensorFlow has several names
            continue
        found |= {"torch": version} if package == "torch" else {"backend": f"{package} {version}"}
    return found


def load_pictures(source, split=None):
    """A function from a preset's `preprocessing` to images (N, crop, crop, 3) of a data set, decoded once a size."""
    decoded = {}

    def pictures(sizes):
        key = sizes["resize"], sizes["crop"]
        if key not in decoded:
            data = datasets.load(
                source, split=split, resize=key[0], image_size=key[1], limit=IMAGES, labels=False, on_error="skip"
            )
            decoded[key] = np.asarray(data.images[:])
        return decoded[key]

    return pictures


def require_write_access(organization, name):
    """Asks the Hub whether the token may write to the organisation.

    Returns:
        The user's name.

    Raises:
        PermissionError: There is no token, or not one that may; the message says how to get one.
    """
    from huggingface_hub import HfApi, constants, get_token

    address = hub.parse(f"hf://{organization}/{name}")
    way_out = (
        f"Make a token with the role `write` at {constants.ENDPOINT}/settings/tokens, as a member of {organization!r}, "
        "and set HF_TOKEN or run `hf auth login`; or name another --organization, or try --dry-run, which needs none. "
        "Nothing was downloaded."
    )
    if get_token() is None:
        raise PermissionError(f"Publishing takes a token of the Hugging Face Hub. Received: none. {way_out}")
    try:
        with hub_errors.explained(address, "publish"):
            who = HfApi().whoami()
    except PermissionError as error:
        raise PermissionError(f"{error} {way_out}") from error
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") not in ("write", "fineGrained"):
        raise PermissionError(f"The token should have the role `write`. Received: {token.get('role')!r}. {way_out}")
    roles = {member["name"]: member.get("roleInOrg") for member in who.get("orgs", ())} | {who["name"]: "admin"}
    if organization not in roles or roles[organization] == "read":
        raise PermissionError(
            f"The token should be of a user who may write to {organization!r}. Received: one of {who['name']!r}, "
            f"who may write to {sorted(name for name, role in roles.items() if role != 'read')}. {way_out}"
        )
    if scopes := (token.get("fineGrained") or {}).get("scoped"):
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        if organization not in writable:
            raise PermissionError(
                f"The token should have the permission `repo.write` for {organization!r}. Received: one for "
                f"{sorted(map(str, writable))}. {way_out}"
            )
    return who["name"]
