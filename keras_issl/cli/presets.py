"""`keras-issl presets`, `push` and `convert`."""

from keras_issl.cli.shared import say


def add(commands):
    """Adds the commands to the parser."""
    p = commands.add_parser("presets", help="list the built-in presets")
    p.add_argument("name", nargs="?", help="print the card of this one instead")
    p.add_argument("--fetch", nargs="+", metavar="NAME", help="download and convert these, so that they work offline")
    p.set_defaults(run=_presets)

    p = commands.add_parser("push", help="publish a preset on the Hugging Face Hub, as one commit")
    p.add_argument("folder", help="preset folder or run folder")
    p.add_argument("address", help="hf://NAMESPACE/NAME: your user or organisation, and the repository")
    p.add_argument("--private", action="store_true", help="if the repository is made, only you can read it")
    p.add_argument("--tag", help="a new name for this version, such as v1")
    p.add_argument("--message", help="message of the commit")
    p.add_argument("--no-create", action="store_true", help="only into a repository that is there")
    p.add_argument("--overwrite-card", action="store_true", help="replace a README.md that somebody wrote there")
    p.add_argument("--parent-commit", help="the commit that you mean to replace; another one there is refused")
    p.add_argument("--picture", help="a PNG of at most 5 MB for the card, such as `keras-issl neighbours` writes")
    p.set_defaults(run=_push)

    p = commands.add_parser("convert", help="make a preset of a torch checkpoint, or a checkpoint of a preset")
    p.add_argument("source", help="a torch checkpoint of a ResNet; with --to-torch a preset")
    p.add_argument("out", help="preset folder to make; with --to-torch a file")
    p.add_argument("--to-torch", action="store_true", help="write torchvision's state dict of a preset")
    p.add_argument("--overwrite", action="store_true", help="replace a preset that is there")
    p.add_argument("--image-size", type=int, help="what the network is meant for, where its first convolution is 3x3")
    p.set_defaults(run=_convert)


def _presets(args):
    from keras_issl import report
    from keras_issl.zoo import format, loading, registry

    if args.fetch:
        for name in args.fetch:
            folder = loading.fetch(name, verbose=True)
            format.check_hashes(folder)
            say(f"{name} is in {folder}")
        return
    if args.name:
        say(registry.shipped_folder(args.name).joinpath("README.md").read_text(encoding="utf-8"))
        return
    say(report.table(*registry.table_rows(registry.list_presets())))
    say(registry.PROTOCOL)


def _push(args):
    from keras_issl.zoo import hub, hub_errors, publishing

    address = publishing.push_to_hub(
        args.folder,
        args.address,
        private=args.private,
        tag=args.tag,
        message=args.message,
        create=not args.no_create,
        overwrite_card=args.overwrite_card,
        parent_commit=args.parent_commit,
        picture=args.picture,
    )
    commit = hub.parse(address).revision
    say(f"{hub_errors.endpoint()}/{hub.parse(address).repo} is at commit {commit}")
    say(f'keras_issl.from_preset("{args.address}@{args.tag or commit}") loads it on any machine')


def _convert(args):
    from keras_issl.zoo import checkpoints, conversion
    from keras_issl.zoo.loading import from_preset

    if args.to_torch:
        checkpoints.check_path(args.out)
        path = conversion.save_checkpoint(from_preset(args.source), args.out)
        say(f"torchvision's state dict of {args.source} written to {path}")
        return
    folder, dropped = conversion.convert(args.source, args.out, image_size=args.image_size, overwrite=args.overwrite)
    if dropped:
        say(f"left out: {', '.join(dropped)}")
    say(f"preset written to {folder}: config.json, model.weights.h5, golden.npz, metadata.json, README.md")
