"""``python -m mbls phantom | download | check | pack | train | compare | study | merge | report | judge |
predictions``: the package's shell.

``--help`` after each says more. Defaults and choices are those of the dataclasses that the options fill.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mbls

if TYPE_CHECKING:
    import pandas as pd

    from mbls.report import Judged, Tables
    from mbls.study.experiment import Experiment

#: Figures that a table in the terminal has room for.
_SHOWN = ("dsc", "hd95", "ece", "cece", "ece_fg", "cece_fg", "nll", "mean_distance")
#: What an error calls an argument of Python, and the option that it was given by.
_OPTION_OF = {
    "train, val, test": "--patients",
    "num_patients": "--patients",
    "root": "--data",
    "name": "--loss",
    "schedule": "--alpha-schedule",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0: fine; 1: ``check`` found problems, ``merge`` unfinished runs, ``judge`` cases that failed; 2: an error in the
    arguments or the data.
    """
    options = _parser().parse_args(arguments)
    try:
        with _quiet() if options.quiet else contextlib.nullcontext():
            return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"mbls {options.command}: {_naming_the_option(str(error), options)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mbls {options.command}: stopped; the same command goes on from here", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither words nor bars, here and in the processes that are started."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _naming_the_option(message: str, options: argparse.Namespace) -> str:
    """The message of an error, with the option in the place of the argument that it fills."""
    names, colon, rest = message.partition(": got ")
    if not colon:
        return message
    given = names.split(", ")
    if names.startswith("options of loss "):
        names = ("--losses" if hasattr(options, "losses") else "--loss") + names.removeprefix("options of loss")
    elif names in _OPTION_OF:
        option = _OPTION_OF[names]
        names = option + "s" if option == "--loss" and hasattr(options, "losses") else option
        if option == "--data" and not hasattr(options, "data"):
            names = "ROOT" if hasattr(options, "root") else "--out"  # which `phantom` makes
    elif all(hasattr(options, name) for name in given):
        names = ", ".join("--" + name.replace("_", "-") for name in given)
    return names + colon + rest


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
    from mbls.data.layout import check_dataset

    report = check_dataset(options.root, options.subject)
    for subject, problems in report.items():
        print(f"{subject}  {'clean' if not problems else f'{len(problems)} problem(s)'}")
        for problem in problems:
            print(f"    {problem}")
    wrong = sum(bool(problems) for problems in report.values())
    print(f"{len(report)} subjects, {wrong} with problems")
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
    experiment = _experiment(options, spec, options.seed)
    experiment.check()  # before a phantom is made
    fabric = make_fabric(options.precision, options.accelerator)
    run = run_experiment(
        experiment, find_data(options.data), options.out, fabric, not options.quiet, options.keep_predictions
    )
    if fabric.global_rank == 0:
        for row in run.rows.values():
            _print_metrics(row)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mbls.study.experiment import sweep

    experiments = sweep(_experiment(options, "ce", 0), options.losses, _numbers("--seeds", options.seeds))
    return _run_all(experiments, options)


def _study(options: argparse.Namespace) -> int:
    from mbls.study.paper import PARTS, PROTOCOLS, study

    protocol = PROTOCOLS[options.protocol]
    if options.epochs is not None:
        protocol = replace(protocol, base=replace(protocol.base, fit=replace(protocol.base.fit, epochs=options.epochs)))
    if options.split is not None:
        protocol = replace(protocol, base=replace(protocol.base, split=options.split))
    only = PARTS if options.parts is None else _words(options.parts)
    runs = None if options.runs is None else _words(options.runs)
    experiments = study(protocol, _numbers("--seeds", options.seeds), only, runs)
    if options.list:
        print("\n".join(experiment.name for experiment in experiments))
        return 0
    if options.out is None:
        raise ValueError("--out: got none, expected a folder for checkpoints and results")
    options.precision = options.precision or protocol.precision
    return _run_all(experiments, options)


def _run_all(experiments: list[Experiment], options: argparse.Namespace) -> int:
    from mbls.data.home import find_data
    from mbls.engine.devices import make_fabric
    from mbls.study.experiment import compare, parse_shard

    shard = None if options.shard is None else parse_shard(options.shard)
    for experiment in experiments:  # before a phantom is made
        experiment.check()
    fabric = make_fabric(options.precision, options.accelerator)
    table = compare(
        experiments,
        find_data(options.data),
        options.out,
        fabric,
        progress=not options.quiet,
        shard=shard,
        keep_predictions=options.keep_predictions,
    )
    if fabric.global_rank == 0:
        _print_table(table)
        merge = f"when all shards are done: python -m mbls merge {options.out}"
        print(options.out / "results.csv" if shard is None else merge)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from mbls.report import is_judged, merge_judged, write_report
    from mbls.study.results import merge

    out = options.out or options.folders[0]
    if is_judged(options.folders[0]):
        judged = merge_judged(options.folders, out)
        _print_report(judged, *write_report(judged))
        return _told_problems(judged)
    table, unfinished = merge(options.folders, out)
    _print_table(table)
    print(out / "results.csv")
    for name in unfinished:
        print(f"unfinished: {name}", file=sys.stderr)
    return 1 if unfinished else 0


def _report(options: argparse.Namespace) -> int:
    from mbls.study.paper import PROTOCOLS
    from mbls.study.report import write_report

    for path in write_report(options.folder, options.out, PROTOCOLS[options.protocol]):
        print(path)
    return 0


def _judge(options: argparse.Namespace) -> int:
    if len(options.folders) == 1:
        return _judge_run(options)
    from mbls.report import judge_folder, write_report
    from mbls.study.experiment import parse_shard

    if len(options.folders) != 2:
        raise ValueError(f"folders: got {len(options.folders)}, expected RUN, or PREDICTIONS and LABELS")
    if options.out is None:
        raise ValueError("out: got none, expected a folder for the report")
    predictions, labels = options.folders
    judged = judge_folder(
        predictions,
        labels,
        options.out,
        logits=options.logits,
        classes=None if options.classes is None else _words(options.classes),
        subject=options.subject,
        surface=not options.no_surface,
        fit=options.fit,
        write=options.write,
        workers=options.workers,
        shard=None if options.shard is None else parse_shard(options.shard),
        progress=not options.quiet,
    )
    if options.shard is None:
        _print_report(judged, *write_report(judged))
    else:
        print(f"when all shards are done: python -m mbls merge {options.out}")
    return _told_problems(judged)


def _judge_run(options: argparse.Namespace) -> int:
    from mbls.files import write_json
    from mbls.study.experiment import judge_run

    given = [name for name in _OF_FOLDERS if getattr(options, name) != _OF_FOLDERS[name]]
    if given:
        raise ValueError(f"{given[0]}: got it with one folder, a run, expected PREDICTIONS and LABELS")
    for kind, (metrics, judgement) in judge_run(options.folders[0], not options.no_surface).items():
        _print_metrics({"weights": kind, **metrics})
        if options.out is not None:
            judgement.save(options.out, f"-{kind}")
            write_json(metrics, options.out / f"metrics-{kind}.json")
    return 0


def _print_report(judged: Judged, tables: Tables, paths: list[Path]) -> None:
    import pandas as pd

    print(f"{judged.name}: {len(tables.cases)} cases of {tables.cases['subject'].nunique()} subjects")
    if judged.fitted is not None:
        print(f"temperature {judged.fitted.temperature:.4f}, from {judged.fitted.cases} validation cases")
    floored = sum(tables.cases["floored"])
    if floored:
        print(f"{floored} probabilities below 1e-8 were raised to it")
    cells: Any = (
        tables.summary[tables.summary["over"] == "cases"].round(4).astype({"mean": str, "low": str, "high": str})
    )
    cells["told"] = cells["mean"] + " [" + cells["low"] + ", " + cells["high"] + "]"
    cells["over"] = cells["stage"].map({"as given": "", "scaled": "scaled "}) + cells["region"].replace("", "all")
    order = {"sort": False, "observed": True}
    table = pd.DataFrame({name: part.set_index("title")["told"] for name, part in cells.groupby("over", **order)})
    print(table.loc[cells["title"].unique()].fillna("").rename_axis(None).to_string())
    print(paths[0])


def _told_problems(judged: Judged) -> int:
    """Say what was wrong; 1 where a case failed, 0 where files only had no partner."""
    for case, problem in judged.problems:
        print(f"{case}: {problem}", file=sys.stderr)
    return 1 if judged.failed else 0


def _predictions(options: argparse.Namespace) -> int:
    from mbls.course.answers import draw, judge_answers, read_answers
    from mbls.files import atomic_write

    missing = [path for path in options.files if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: missing, expected a reader's my_predictions.json")
    readers = [read_answers(path) for path in options.files]
    calibration = judge_answers(readers)
    print(f"{len(readers)} readers, {calibration.describe('They were')}")
    if options.out is not None:
        readers_and_answers = f"{len(readers)} readers, {calibration.count} predictions"
        figure = draw(calibration, "Predictions of a class", readers_and_answers)
        with atomic_write(options.out) as part:
            figure.savefig(part, dpi=150, format="png")
        print(options.out)
    return 0


def _print_metrics(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, (int, float, str)):
            print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")


def _print_table(table: pd.DataFrame) -> None:
    from mbls.study.results import KEYS, WEIGHTS

    shown = [name for name in (*KEYS, WEIGHTS, *_SHOWN, "train_seconds") if name in table]
    print(table[shown].round(4).to_string(index=False))


def _experiment(options: argparse.Namespace, loss: str, seed: int) -> Experiment:
    from mbls.engine.fit import FitSettings
    from mbls.study.experiment import Experiment

    parts = options.patients.split(",")
    try:
        patients = tuple(float(part) if "." in part else int(part) for part in parts)
    except ValueError:
        patients = ()
    if len(patients) != 3:
        raise ValueError(f"--patients: got {options.patients!r}, expected train,val,test, e.g. 15,5,10 or 0.7,0.1,0.2")
    settings = FitSettings(**_given(options, FitSettings, but=("seed",)), seed=seed)
    rest = _given(options, Experiment, but=("loss", "patients", "fit", "surface", "train_patients", "judged"))
    judged = tuple(options.judged)
    return Experiment(loss=loss, patients=patients, fit=settings, surface=not options.no_surface, judged=judged, **rest)


def _given(options: argparse.Namespace, kind: type, but: tuple[str, ...]) -> dict[str, Any]:
    """The values of the options that are named as a dataclass's fields."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in but]
    return {name: getattr(options, name) for name in names}


def _words(given: list[str]) -> list[str]:
    """Words between spaces or commas."""
    return [word for words in given for word in words.split(",") if word]


def _numbers(option: str, given: list[str]) -> list[int]:
    try:
        numbers = [int(word) for word in _words(given)]
    except ValueError:
        numbers = []
    if not numbers:
        raise ValueError(f"{option}: got {' '.join(given)!r}, expected whole numbers, e.g. 0,1,2")
    return numbers


def _add(parser: argparse.ArgumentParser, kind: type, name: str, help: str, choices: Any = None) -> None:
    """An option that fills a field of a dataclass: its type, default and choices come from there."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    hint = typing.get_type_hints(kind)[name]
    if type(None) in typing.get_args(hint):  # "X | None"
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices, hint = typing.get_args(hint), str
    flag = "--" + name.replace("_", "-")
    if hint is bool:
        parser.add_argument(flag, action="store_true", help=help)
        return
    told = help if field.default is None else f"{help} (default: {field.default})"
    parser.add_argument(flag, type=hint, default=field.default, choices=choices, help=told)


class _Command(argparse.ArgumentParser):
    """A command whose options are added when it is the one that is called: some have to import much to know them."""

    def __init__(self, *arguments: Any, fill: Callable[[argparse.ArgumentParser], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.add_argument("--quiet", action="store_true", help="nothing on the screen but errors")
        self._fill(self)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mbls", description="Margin-based label smoothing on medical images.")
    parser.add_argument("--version", action="version", version=f"mbls {mbls.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)
    for name, (fill, text) in _COMMANDS.items():
        commands.add_parser(name, fill=fill, help=text, description=text)
    return parser


_LAYOUTS = "folder in the layout of ACDC, nnU-Net or MSD"
_SUBJECT = "regular expression that finds the subject in a case's id (nnU-Net and MSD)"


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder to make (default: data/phantom)")
    parser.add_argument("--patients", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other hearts (default: 0)")
    parser.add_argument(
        "--if-missing", action="store_true", help="only where no data is found ($MBLS_DATA, data/acdc, data/phantom)"
    )
    parser.set_defaults(run=_phantom)


def _download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder for training/patientXXX (default: data/acdc)")
    parser.add_argument("--patients", type=int, default=15, help="how many, spread over the five groups (default: 15)")
    parser.add_argument("--server", help="API root of another Girder server")
    parser.add_argument("--folder", help="identifier of the data set's folder there")
    parser.set_defaults(run=_download)


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help=_LAYOUTS)
    parser.add_argument("--subject", help=_SUBJECT)
    parser.set_defaults(run=_check)


def _pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, help="folder in the ACDC layout (default: $MBLS_DATA, data/acdc or the phantom)"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, e.g. runs/acdc192.tar.xz")
    parser.add_argument("--size", type=int, default=192, help="side of the square kept of each slice (default: 192)")
    parser.set_defaults(run=_pack)


def _place_options(
    parser: argparse.ArgumentParser, out_required: bool = True, precision: str | None = "32-true"
) -> None:
    """Where data and results are, and what the network runs on."""
    from mbls.engine.devices import Precision
    from mbls.study.experiment import Experiment

    parser.add_argument("--data", type=Path, help=f"{_LAYOUTS} (default: $MBLS_DATA, data/acdc or the phantom)")
    parser.add_argument("--out", type=Path, required=out_required, help="folder for checkpoints and results")
    _add(parser, Experiment, "split", "JSON file with the subjects of train, val and test, e.g. data/acdc_split.json")
    parser.add_argument(
        "--precision",
        choices=typing.get_args(Precision),
        default=precision,
        help=f"of the arithmetic (default: {precision or 'as the protocol says'})",
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--keep-predictions",
        action="store_true",
        help="keep the log-probabilities of the test and validation cases, which `judge` judges again",
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    """How a network is trained and judged."""
    from mbls.engine.fit import FitSettings
    from mbls.networks.backbones import NETWORKS
    from mbls.study.experiment import Experiment, Weights

    _place_options(parser)
    _add(parser, Experiment, "model", "the network", choices=tuple(NETWORKS))
    _add(parser, Experiment, "base_channels", "filters of its first level")
    _add(parser, Experiment, "levels", "its resolutions")
    _add(parser, Experiment, "norm", "normalisation of the unet; none without it, as in the paper")
    _add(parser, Experiment, "size", "side of the slices given to the network, in voxels")
    _add(parser, Experiment, "crop", "side of the square cut from the image, resized to --size (default: --size)")
    _add(parser, Experiment, "scaling", "of the intensities of a volume")
    _add(parser, Experiment, "augment", "rotate, scale, shift the training slices, change contrast and noise")
    _add(parser, Experiment, "subject", _SUBJECT)
    parts = ",".join(f"{part:g}" for part in Experiment.patients)
    parser.add_argument(
        "--patients", default=parts, help=f"train,val,test as numbers or fractions of the subjects (default: {parts})"
    )
    _add(parser, Experiment, "split_seed", "chooses which")
    _add(parser, FitSettings, "epochs", "passes over the training slices")
    _add(parser, FitSettings, "batch_size", "slices a step, in each process")
    _add(parser, FitSettings, "learning_rate", "of Adam")
    _add(parser, FitSettings, "lr_step", "epochs between multiplications of the learning rate by --lr-decay")
    _add(parser, FitSettings, "lr_decay", "what it is multiplied by")
    _add(parser, FitSettings, "validate_every", "epochs between validations")
    _add(parser, FitSettings, "full_validation_every", "epochs between validations that keep every metric; else five")
    _add(parser, Experiment, "alpha_schedule", "of the penalty's weight: MODE:STEP:EVERY[:MAXIMUM], e.g. add:0.1:10")
    parser.add_argument(
        "--judged",
        nargs="+",
        choices=typing.get_args(Weights),
        default=list(Experiment.judged),
        help="which weights get a row of metrics, of the best validation epoch or the last (default: best)",
    )
    parser.add_argument("--no-surface", action="store_true", help="leave out HD95 and ASD")


def _train_options(parser: argparse.ArgumentParser) -> None:
    from mbls.engine.fit import FitSettings
    from mbls.losses import LOSSES
    from mbls.study.experiment import Experiment

    default = Experiment.loss
    _run_options(parser)
    parser.add_argument(
        "--loss", default=default, help=f"{', '.join(LOSSES)}; more options as mbls:norm=l2 (default: {default})"
    )
    for name in ("margin", "alpha", "gamma", "sigma"):
        parser.add_argument(f"--{name}", type=float, help="option of the loss")
    _add(parser, FitSettings, "seed", "of weights, order and augmentation")
    parser.set_defaults(run=_train)


def _many_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard", help="i/n: only every n-th run from the i-th on, e.g. 2/4 in the second of four jobs"
    )


def _compare_options(parser: argparse.ArgumentParser) -> None:
    from mbls.losses import LOSSES

    _run_options(parser)
    _many_options(parser)
    parser.add_argument(
        "--losses",
        required=True,
        nargs="+",
        help=f"of {', '.join(LOSSES)}; e.g. ce ls mbls:margin=3 mbls:margin=5:alpha=0.2",
    )
    parser.add_argument("--seeds", default=["0"], nargs="+", help="e.g. 0,1,2 (default: 0)")
    parser.set_defaults(run=_compare)


def _study_options(parser: argparse.ArgumentParser) -> None:
    from mbls.study.paper import PARTS, PROTOCOLS

    _place_options(parser, out_required=False, precision=None)  # --list does without a folder
    _many_options(parser)
    parser.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        default="paper",
        help="the paper's, for a GPU, or one for two cores (default: paper)",
    )
    parser.add_argument("--parts", nargs="+", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", default=["0,1,2"], nargs="+", help="(default: 0,1,2)")
    parser.add_argument(
        "--runs", nargs="+", help="of these parts and seeds, only the runs of some names, as --list prints"
    )
    parser.add_argument(
        "--epochs", type=int, help="another number than the protocol's, e.g. 2 to see whether all of it runs"
    )
    parser.add_argument("--list", action="store_true", help="only print the names of the runs")
    parser.set_defaults(run=_study)


def _merge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="the --out of the jobs")
    parser.add_argument("--out", type=Path, help="folder for the table or report (default: the first folder)")
    parser.set_defaults(run=_merge)


def _report_options(parser: argparse.ArgumentParser) -> None:
    from mbls.study.paper import PROTOCOLS

    parser.add_argument("folder", type=Path, help="where merge wrote results.csv")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="paper", help="(default: paper)")
    parser.add_argument(
        "--out", type=Path, required=True, help="path and beginning of the names, e.g. data/results/acdc_reduced"
    )
    parser.set_defaults(run=_report)


#: Options of `judge` that need predictions and labels, with their defaults.
_OF_FOLDERS: dict[str, Any] = {
    "logits": False,
    "classes": None,
    "subject": None,
    "fit": None,
    "write": None,
    "workers": 1,
    "shard": None,
}


def _judge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        type=Path,
        nargs="+",
        help="RUN, trained with --keep-predictions; or PREDICTIONS LABELS of any program: nnU-Net's "
        "--save_probabilities, MONAI's SaveImage, NIfTI, .npy or .npz",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the report and its tables; of a run: for cases, bins and metrics"
    )
    parser.add_argument("--no-surface", action="store_true", help="leave out HD95, ASD and distances to the boundary")
    parser.add_argument("--logits", action="store_true", help="the predictions are logits, not probabilities")
    parser.add_argument("--classes", nargs="+", help="names, the background first (default: from dataset.json)")
    parser.add_argument("--subject", help="regular expression that finds the subject in a case (default: all of it)")
    parser.add_argument(
        "--fit",
        type=Path,
        nargs=2,
        metavar=("VALIDATION", "LABELS"),
        help="other cases, on which a temperature and intervals of volumes are fitted",
    )
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help="write probabilities after the temperature, in the format they had"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, the same figures to the bit (default: 1)")
    parser.add_argument("--shard", help="i/n: only every n-th case from the i-th on; `merge` brings them together")
    parser.set_defaults(run=_judge)


def _predictions_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="my_predictions.json of each reader")
    parser.add_argument("--out", type=Path, help="picture of the pooled diagram, .png (default: only print)")
    parser.set_defaults(run=_predictions)


#: Command -> what adds its options, and what it does.
_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "phantom": (_phantom_options, "make the synthetic cardiac phantom"),
    "download": (_download_options, "download some patients of ACDC from its official server"),
    "check": (_check_options, "read every volume under a folder and say what is wrong"),
    "pack": (_pack_options, "the middle of every volume in one compact .tar.xz, to be carried elsewhere"),
    "train": (_train_options, "train and judge one network"),
    "compare": (_compare_options, "train and judge several networks, one table"),
    "study": (_study_options, "the paper's comparison on ACDC, all of it or some parts"),
    "merge": (_merge_options, "one table, or report, of what the shards of a comparison, or of `judge`, made"),
    "report": (_report_options, "the tables of a study: runs, test subjects, Markdown"),
    "judge": (_judge_options, "all metrics of a run again; or a report on predictions that any program wrote"),
    "predictions": (_predictions_options, "how well the readers of the course knew what they knew, pooled"),
}


if __name__ == "__main__":
    sys.exit(main())
