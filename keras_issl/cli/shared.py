"""What several commands share: their options, the images and the encoder that they name."""

PRESET = "name of a built-in preset, preset folder, run folder or hf://org/name[@revision]"
SOURCES = "'digits' (scikit-learn's scanned digits), a folder of images, Parquet files, 'tfds:NAME' or 'hf:NAME'"


def say(line=""):
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def encoding_options(parser, limit="use only so many images"):
    """Options of the commands that encode images."""
    parser.add_argument("--image-size", type=int, help="default: the size the preset is meant for")
    parser.add_argument("--verify", action="store_true", help="first compute the preset's recorded features again")
    parser.add_argument("--batch-size", type=int, help="default: 256, or 64 for images of 128 pixels and more")
    parser.add_argument("--limit", type=int, help=limit)
    parser.add_argument("--skip-broken", action="store_true", help="skip and count images that cannot be read")


def on_broken(args):
    """What `datasets.load` should do with images that cannot be read."""
    if getattr(args, "replace_broken", False):
        return "replace"
    return "skip" if args.skip_broken else "raise"


def load(args, split, size, option="--split"):
    """The images of a split; `size` holds `image_size` and perhaps `resize`, as `datasets.load` takes them.

    Errors about the split name the option that it comes from.
    """
    from keras_issl import datasets

    on_error = on_broken(args)
    try:
        data = datasets.load(args.data, split=split, on_error=on_error, limit=args.limit, **size)
    except ValueError as error:
        if not str(error).startswith("`split`"):
            raise
        told = str(error).replace("`split`", f"`{option}`", 1).replace("split=None", "none")
        raise type(error)(told.replace("split=", f"{option} ")) from None
    shape = "x".join(map(str, data.image_shape))
    say(f"data: {data.name}, {len(data):,} images {shape}" + (f", {len(data.skipped)} skipped" if data.skipped else ""))
    return data


def load_split(args, size, default="train"):
    """The split that was asked for, else the default one, else everything; and whether there is no other part.

    Where the default is test, images for validation stand in for it, and those of train for both.
    """
    from keras_issl import datasets

    if args.split:
        return load(args, args.split, size), False
    for split in ("test", "valid", "train") if default == "test" else (default,):
        try:
            data = load(args, split, size)
        except datasets.UnknownSplit:
            continue
        if split != default:
            say(f"no {default} split: these are the images of {split}; --split names others")
        return data, split == "train" != default
    return load(args, None, size), True


def load_encoder(args):
    """The preset's encoder, how to bring images to its size, and what its features should say of their origin."""
    from keras_issl import zoo

    preset = zoo.pin(args.preset)  # so that all that is read, and recorded, is of one commit
    encoder = zoo.from_preset(preset, verify=args.verify)
    metadata = zoo.read_metadata(preset)
    provenance = {"preset": str(preset)}
    size = _image_size(args, metadata, encoder)
    if "resize" in size:
        provenance["preprocessing"] = {"resize": size["resize"], "crop": size["image_size"]}
    return encoder, size, provenance


def _image_size(args, metadata, encoder):
    """What was asked for, else the preset's evaluation protocol, the size of its training views or the encoder's."""
    if args.image_size is not None:
        return {"image_size": args.image_size}
    if protocol := metadata.get("preprocessing"):
        return {"image_size": protocol["crop"], "resize": protocol["resize"]}
    if args.data == "digits":
        return {"image_size": None}
    views = (metadata.get("recipe") or {}).get("augmentation_args")
    size = views.get("size") if isinstance(views, dict) else None
    return {"image_size": size if isinstance(size, int) else getattr(encoder, "image_size", None)}


def batch_size(args, data):
    """What was asked for, else what a laptop's memory holds: activations grow with the pixels."""
    return args.batch_size or (256 if max(data.image_shape[:2]) < 128 else 64)
