"""``python -m mbls phantom | download | check | pack | train | compare | study | merge | report``: the package from the shell.

``--help`` after each says more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from lightning_fabric import Fabric


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0: fine; 1: ``check`` found problems, ``merge`` unfinished runs; 2: an error in the arguments or the data.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError, FileExistsError, ConnectionError) as error:
        print(f"mbls {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mbls {options.command}: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _phantom(options: argparse.Namespace) -> int:
    from mbls.data.home import data_home, find_data
    from mbls.data.phantom import make_phantom

    if options.if_missing:
        root = find_data()
    else:
        root = make_phantom(options.out or data_home() / "phantom", options.patients, options.seed)
    print(root)
    return 0


def _download(options: argparse.Namespace) -> int:
    from mbls.data.download import download_patients
    from mbls.data.home import data_home

    root = download_patients(options.out or data_home() / "acdc", options.patients, options.server, options.folder)
    print(root)
    return 0


def _check(options: argparse.Namespace) -> int:
    from mbls.data.acdc import check_patients

    report = check_patients(options.root)
    for patient, problems in report.items():
        print(f"{patient}  {'clean' if not problems else f'{len(problems)} problem(s)'}")
        for problem in problems:
            print(f"    {problem}")
    wrong = sum(bool(problems) for problems in report.values())
    print(f"{len(report)} patients, {wrong} with problems")
    return 1 if wrong else 0


def _pack(options: argparse.Namespace) -> int:
    from mbls.data.home import find_data
    from mbls.data.pack import pack_patients

    path = pack_patients(find_data(options.data), options.out, options.size)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; tar xf unpacks it")
    return 0


def _train(options: argparse.Namespace) -> int:
    from mbls.data.home import find_data
    from mbls.engine.devices import make_fabric
    from mbls.study.experiment import run_experiment

    given = {name: getattr(options, name) for name in ("margin", "alpha", "gamma", "sigma")}
    spec = ":".join([options.loss, *(f"{name}={value:g}" for name, value in given.items() if value is not None)])
    fabric = make_fabric(options.precision, options.accelerator)
    row, *_ = run_experiment(_experiment(options, spec, options.seed), find_data(options.data), options.out, fabric)
    if fabric.global_rank == 0:
        for name, value in row.items():
            if isinstance(value, (int, float, str)):
                print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mbls.data.home import find_data
    from mbls.engine.devices import make_fabric
    from mbls.study.experiment import compare, parse_shard, sweep

    shard = None if options.shard is None else parse_shard(options.shard)
    base = _experiment(options, "ce", 0)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    fabric = make_fabric(options.precision, options.accelerator)
    experiments = sweep(base, options.losses.split(","), seeds)
    table = compare(experiments, find_data(options.data), options.out, fabric, shard=shard)
    return _finish(table, options.out, shard, fabric)


def _finish(table: pd.DataFrame, out: Path, shard: tuple[int, int] | None, fabric: Fabric) -> int:
    if fabric.global_rank == 0:
        _print_table(table)
        print(out / "results.csv" if shard is None else f"when all shards are done: python -m mbls merge {out}")
    return 0


def _study(options: argparse.Namespace) -> int:
    from mbls.data.home import find_data
    from mbls.engine.devices import make_fabric
    from mbls.study.experiment import compare, parse_shard
    from mbls.study.paper import PARTS, PROTOCOLS, study

    shard = None if options.shard is None else parse_shard(options.shard)
    protocol = PROTOCOLS[options.protocol]
    if options.epochs is not None:
        protocol = replace(protocol, base=replace(protocol.base, fit=replace(protocol.base.fit, epochs=options.epochs)))
    if options.split is not None:
        protocol = replace(protocol, base=replace(protocol.base, split=options.split))
    only = PARTS if options.parts is None else options.parts.split(",")
    experiments = study(protocol, [int(seed) for seed in options.seeds.split(",")], only)
    if options.list:
        print("\n".join(experiment.name for experiment in experiments))
        return 0
    fabric = make_fabric(options.precision, options.accelerator)
    table = compare(experiments, find_data(options.data), options.out, fabric, shard=shard)
    return _finish(table, options.out, shard, fabric)


def _merge(options: argparse.Namespace) -> int:
    from mbls.study.results import merge

    out = options.out or options.folders[0]
    table, unfinished = merge(options.folders, out)
    _print_table(table)
    print(out / "results.csv")
    for name in unfinished:
        print(f"unfinished: {name}", file=sys.stderr)
    return 1 if unfinished else 0


def _report(options: argparse.Namespace) -> int:
    from mbls.study.paper import PROTOCOLS
    from mbls.study.tables import write_report

    for path in write_report(options.folder, options.out, PROTOCOLS[options.protocol]):
        print(path)
    return 0


def _print_table(table: pd.DataFrame) -> None:
    shown = [
        "loss",
        "model",
        "train_patients",
        "seed",
        "dsc",
        "hd95",
        "ece",
        "cece",
        "ece_fg",
        "cece_fg",
        "nll",
        "mean_distance",
        "train_seconds",
    ]
    print(table[[name for name in shown if name in table]].round(4).to_string(index=False))


def _experiment(options: argparse.Namespace, loss: str, seed: int):
    from mbls.engine.fit import FitSettings
    from mbls.study.experiment import Experiment

    parts = options.patients.split(",")
    if len(parts) != 3:
        raise ValueError(f"--patients: got {options.patients!r}, expected train,val,test, e.g. 15,5,10 or 0.7,0.1,0.2")
    settings = FitSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_step=options.lr_step,
        validate_every=options.validate_every,
        seed=seed,
    )
    return Experiment(
        loss=loss,
        model=options.model,
        base_channels=options.base_channels,
        levels=options.levels,
        norm=options.norm,
        size=options.size,
        crop=options.crop,
        scaling=options.scaling,
        augment=options.augment,
        patients=tuple(float(part) if "." in part else int(part) for part in parts),
        split_seed=options.split_seed,
        split=options.split,
        fit=settings,
        surface=not options.no_surface,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mbls", description="Margin-based label smoothing on cardiac MR.")
    commands = parser.add_subparsers(dest="command", required=True)

    phantom = commands.add_parser("phantom", help="make the synthetic cardiac phantom")
    phantom.add_argument("--out", type=Path, help="folder to make (default: data/phantom)")
    phantom.add_argument("--patients", type=int, default=20)
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument(
        "--if-missing", action="store_true", help="only where no data is found ($MBLS_DATA, data/acdc, data/phantom)"
    )
    phantom.set_defaults(run=_phantom)

    download = commands.add_parser("download", help="download some patients of ACDC from its official server")
    download.add_argument("--out", type=Path, help="folder for training/patientXXX (default: data/acdc)")
    download.add_argument(
        "--patients", type=int, default=15, help="how many, spread over the five groups (default: 15)"
    )
    download.add_argument("--server", help="API root of another Girder server")
    download.add_argument("--folder", help="identifier of the data set's folder there")
    download.set_defaults(run=_download)

    check = commands.add_parser("check", help="read every volume under a folder and say what is wrong")
    check.add_argument("root", type=Path)
    check.set_defaults(run=_check)

    pack = commands.add_parser(
        "pack", help="the middle of every volume in one compact .tar.xz, to be carried elsewhere"
    )
    pack.add_argument(
        "--data", type=Path, help="folder in the ACDC layout (default: $MBLS_DATA, data/acdc or the phantom)"
    )
    pack.add_argument("--out", type=Path, required=True, help="file to write, e.g. runs/acdc192.tar.xz")
    pack.add_argument("--size", type=int, default=192, help="side of the square kept of each slice, in voxels")
    pack.set_defaults(run=_pack)

    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--data", type=Path, help="folder in the ACDC layout (default: $MBLS_DATA, data/acdc or the phantom)"
    )
    place.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    place.add_argument("--split", help="JSON file with the patients of train, val and test, e.g. data/acdc_split.json")
    place.add_argument("--precision", default="32-true", help="32-true, bf16-mixed or 16-mixed")
    place.add_argument("--accelerator", default="auto", help="auto, cpu or cuda")

    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--shard", help="i/n: only every n-th run from the i-th on, e.g. 2/4 in the second of four jobs")

    run = argparse.ArgumentParser(add_help=False, parents=[place])
    run.add_argument("--model", default="unet", help="unet, attention_unet, unet++ or swin_unetr")
    run.add_argument("--base-channels", type=int, default=32)
    run.add_argument("--levels", type=int, default=5)
    run.add_argument("--norm", help="normalisation of the unet: batch or instance (default: none, as in the paper)")
    run.add_argument("--size", type=int, default=192, help="side of the slices given to the network, in voxels")
    run.add_argument(
        "--crop", type=int, help="side of the square cut from the image, resized to --size (default: --size)"
    )
    run.add_argument("--scaling", default="zscore", help="zscore, percentile or none")
    run.add_argument("--augment", action="store_true")
    run.add_argument("--patients", default="0.7,0.1,0.2", help="train,val,test as numbers or fractions")
    run.add_argument("--split-seed", type=int, default=0)
    run.add_argument("--epochs", type=int, default=100)
    run.add_argument("--batch-size", type=int, default=4)
    run.add_argument("--learning-rate", type=float, default=1e-3)
    run.add_argument("--lr-step", type=int, default=50, help="epochs between divisions of the learning rate by 10")
    run.add_argument("--validate-every", type=int, default=1, help="epochs")
    run.add_argument("--no-surface", action="store_true", help="leave out HD95 and ASD")

    train = commands.add_parser("train", parents=[run], help="train and judge one network")
    train.add_argument(
        "--loss",
        default="mbls",
        help="ce, ce_dice, ls, fl, ecp, svls, mbls, mbls_dice or nacl; more options as mbls:norm=l2",
    )
    for name in ("margin", "alpha", "gamma", "sigma"):
        train.add_argument(f"--{name}", type=float, help="option of the loss")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)

    compare = commands.add_parser("compare", parents=[run, many], help="train and judge several networks, one table")
    compare.add_argument("--losses", required=True, help="e.g. ce,ls,mbls:margin=3,mbls:margin=5:alpha=0.2")
    compare.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    compare.set_defaults(run=_compare)

    study = commands.add_parser(
        "study", parents=[place, many], help="the paper's comparison on ACDC, all of it or some parts"
    )
    study.add_argument(
        "--protocol", choices=("paper", "cpu"), default="paper", help="the paper's, for a GPU, or one for two cores"
    )
    study.add_argument("--parts", help="losses, margins, weights, few_patients, backbones (default: all)")
    study.add_argument("--seeds", default="0,1,2")
    study.add_argument(
        "--epochs", type=int, help="another number than the protocol's, e.g. 2 to see whether all of it runs"
    )
    study.add_argument("--list", action="store_true", help="only print the names of the runs")
    study.set_defaults(run=_study)

    merge = commands.add_parser("merge", help="one table of the runs that the shards of a comparison made")
    merge.add_argument("folders", type=Path, nargs="+", help="the --out of the jobs")
    merge.add_argument("--out", type=Path, help="folder for the table (default: the first folder)")
    merge.set_defaults(run=_merge)

    report = commands.add_parser("report", help="the tables of a study: runs, test patients, Markdown")
    report.add_argument("folder", type=Path, help="where merge wrote results.csv")
    report.add_argument("--protocol", choices=("paper", "cpu"), default="paper")
    report.add_argument(
        "--out", type=Path, required=True, help="path and beginning of the names, e.g. data/results/acdc_study"
    )
    report.set_defaults(run=_report)
    return parser


if __name__ == "__main__":
    sys.exit(main())
