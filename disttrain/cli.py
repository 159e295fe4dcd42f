"""The command ``disttrain``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disttrain.component import UserError
from disttrain.config import LoadedConfig, load_config, show
from disttrain.launch.shutdown import USERS_MISTAKE
from disttrain.launchers.claimed import Told, claimed_folder, with_directory


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit by its code: 0 done, 2 the user's mistake, 143 stopped by a signal after saving, 1 anything else."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)  # argparse takes no positional arguments after options
    if options := [each for each in rest if each.startswith("-")]:
        parser.error(f"unknown option: {' '.join(options)}")
    if rest and parsed.more is None:
        parser.error(f"unexpected: {' '.join(rest)}")
    if parsed.more is not None:
        vars(parsed)[parsed.more] += rest
    try:
        code = parsed.command(parsed)
    except UserError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        code = USERS_MISTAKE
    except Told:
        code = USERS_MISTAKE
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="disttrain", description="Train PyTorch models data-parallel over any network.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on this host's workers", description=_train.__doc__, allow_abbrev=False)
    train.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes to start (default 1)")
    train.add_argument("--max-restarts", type=_natural, default=0, metavar="N", help="restarts after failures (default 0)")
    on_failure = "when a worker is lost: stop all (default), or go on without it, under a strategy that can"
    train.add_argument("--on-failure", choices=("stop", "continue"), default="stop", help=on_failure)
    _add_config(train, _train)
    simulate = commands.add_parser(
        "simulate", help="train many workers in this process", description=_simulate.__doc__, allow_abbrev=False
    )
    simulate.add_argument("--workers", type=_positive, required=True, metavar="N", help="workers to simulate")
    simulate.add_argument("--chunk", type=_positive, metavar="N", help="workers whose gradients are computed at a time")
    simulate.add_argument(
        "--gradients",
        choices=("vmap", "forward", "loop"),
        help="how gradients are computed (default: the fastest in a short trial)",
    )
    _add_config(simulate, _simulate)
    emulate = commands.add_parser(
        "emulate", help="train over links of a given bandwidth", description=_emulate.__doc__, allow_abbrev=False
    )
    emulate.add_argument("--workers", type=_positive, required=True, metavar="N", help="processes to start")
    emulate.add_argument("--bandwidth", required=True, metavar="SPEC", help="of each worker's link, such as 100mbit; "
                         "100mbit/10mbit: to and from the worker; several, with commas between: one for each worker")  # fmt: skip
    emulate.add_argument("--step-time", metavar="TIME", help="emulate compute too: a step takes so long, such as 50ms")
    emulate.add_argument("--events", metavar="FILE", help="a YAML file of what happens during the run")
    emulate.add_argument("--max-restarts", type=_natural, default=0, metavar="N", help="restarts after failures (default 0)")
    _add_config(emulate, _emulate)
    federated = commands.add_parser(
        "federated", help="train clients that own their data", description=_federated.__doc__, allow_abbrev=False
    )
    _add_config(federated, _federated)
    _add_merge(commands)
    _add_report(commands)
    _add_data(commands)
    doctor = commands.add_parser("doctor", help="what this machine can do", description=_doctor.__doc__, allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(command=_doctor, more=None)
    config = commands.add_parser("config", help="look at a config").add_subparsers(required=True, metavar="COMMAND")
    show_parser = config.add_parser("show", help="the resolved config", description=_show.__doc__, allow_abbrev=False)
    _add_config(show_parser, _show)
    return parser


def _add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    merge = commands.add_parser("merge", help="make one model of several", description=_merge.__doc__, allow_abbrev=False)
    runs = "a run's folder; one: its workers are merged; several: their results"
    merge.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    merge.add_argument("--output", metavar="FOLDER", help="where to write (default: RUN/merged of one run, else runs/merged)")
    merge.add_argument("--step", type=_natural, metavar="S", help="of one run's checkpoint (default: the newest that is whole)")
    policies, which = (
        ("local", "average", "recalibrate"),
        "what becomes of running statistics (default: the run's strategy.buffers)",
    )
    merge.add_argument("--buffers", choices=policies, help=which)
    merge.set_defaults(command=_merge, more="runs")


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="one page about runs", description=_report.__doc__, allow_abbrev=False)
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    where = "where to write (default: RUN/report.html of one, else runs/report.html)"
    report.add_argument("--output", metavar="FILE", help=where)
    report.set_defaults(command=_report, more="runs")


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="make files of tokens").add_subparsers(required=True, metavar="COMMAND")
    prepare = data.add_parser("prepare", help="text to tokens", description=_prepare.__doc__, allow_abbrev=False)
    what = "a file (text, .jsonl, .parquet), a folder of these, or a data set saved by Hugging Face's datasets"
    prepare.add_argument("paths", nargs="+", metavar="PATH", help=what)
    prepare.add_argument("--output", required=True, metavar="FOLDER", help="where to write")
    tokenizer = "a tokenizer.json, a folder with one, or bytes (default)"
    prepare.add_argument("--tokenizer", default="bytes", metavar="FILE", help=tokenizer)
    separator = "put after each document (default: a zero byte, or the token that ends a text)"
    prepare.add_argument("--separator", metavar="TEXT", help=separator)
    suffixes = "what is taken from folders, such as .txt,.py (default: .txt,.md,.rst,.jsonl,.ndjson,.parquet)"
    prepare.add_argument("--suffixes", type=_suffixes, metavar="LIST", help=suffixes)
    prepare.add_argument("--field", default="text", metavar="NAME", help="the field or column with the text (default text)")
    prepare.set_defaults(command=_prepare, more="paths")


def _add_config(parser: argparse.ArgumentParser, command: object) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the file's")
    parser.set_defaults(command=command, more="overrides")


def _train(parsed: argparse.Namespace) -> int:
    """Train the config's model over N worker processes of this host; for several hosts start torchrun on each of them."""
    from disttrain.launch.agent import train  # seconds of imports that a mistake in the config should not wait for
    from disttrain.launch.survival import train_on

    loaded = _checked(parsed)
    goes_on = parsed.on_failure == "continue"
    if goes_on:
        _check_survival(parsed, loaded)
    with claimed_folder(loaded) as folder:
        overrides = with_directory(parsed.overrides, loaded, folder)
        if goes_on:
            command = ["disttrain.worker", parsed.config, *overrides]
            code = train_on(command, folder.path, parsed.workers, loaded.config.launch.timeout, parsed.max_restarts)
        else:
            code = train(parsed.config, overrides, folder.path, parsed.workers, parsed.max_restarts)
        if code == USERS_MISTAKE:
            raise Told
    return code


def _check_survival(parsed: argparse.Namespace, loaded: LoadedConfig) -> None:
    """Refuse what could not go on without a lost worker.

    Raises:
        UserError: saying what could.
    """
    try:
        loaded.config.strategy.check_survival(parsed.workers)
    except ValueError as error:
        raise UserError(f"--on-failure continue: strategy: {error}") from None


def _emulate(parsed: argparse.Namespace) -> int:
    """Train over N worker processes of this host, each in a network namespace of its own, joined by links of the given
    bandwidth. Linux and root only. Bandwidth is emulated; latency and loss are not. Leaves nothing behind, however it ends."""
    from disttrain.emulation.command import check_config, check_options, make_plan, settings
    from disttrain.emulation.outside import emulate
    from disttrain.emulation.requirements import check_machine

    links, events = check_options(parsed.workers, parsed.bandwidth, parsed.events)
    parsed.overrides += settings(parsed.step_time)
    loaded = _checked(parsed)
    check_config(loaded.config)
    check_machine()
    with claimed_folder(loaded) as folder:
        overrides = with_directory(parsed.overrides, loaded, folder)
        code = emulate(make_plan(loaded, overrides, folder.path, links, events, parsed.max_restarts))
        if code == USERS_MISTAKE:
            raise Told
    return code


def _checked(parsed: argparse.Namespace) -> LoadedConfig:
    """The config, with everything checked that can be before a worker process starts."""
    loaded = load_config(parsed.config, parsed.overrides)
    loaded.config.check_world(parsed.workers)
    loaded.config.check_data()
    return loaded


def _simulate(parsed: argparse.Namespace) -> int:
    """Train N workers in this process, as rows of tensors: the same config, data, strategy and result as N processes."""
    from disttrain.launch.shutdown import DONE, FAILED, STOPPED, StopRequest
    from disttrain.simulation.run import Diverged, SimulateOptions, Simulation, check

    loaded = load_config(parsed.config, parsed.overrides)
    options = SimulateOptions(parsed.workers, parsed.chunk, parsed.gradients)
    check(loaded, options)
    for notice in loaded.notices:
        print(f"note: {notice}")
    stop_request = StopRequest()
    stop_request.listen()
    with claimed_folder(loaded) as folder:
        simulation = Simulation(loaded, options, folder, stop_request)
        try:
            simulation.run()
        except Diverged as error:
            print(f"disttrain: {error}", file=sys.stderr)
            return FAILED
    return DONE if simulation.completed else STOPPED


def _federated(parsed: argparse.Namespace) -> int:
    """Train one model on the data of many clients, a few of which take part in each round; all of them live in this process,
    or on Ray actors."""
    from disttrain.federated import EngineFailed
    from disttrain.launch.shutdown import DONE, FAILED, STOPPED, StopRequest
    from disttrain.simulation.federated.checking import check
    from disttrain.simulation.federated.run import FederatedRun
    from disttrain.simulation.run import Diverged

    loaded = load_config(parsed.config, parsed.overrides)
    check(loaded)
    for notice in loaded.notices:
        print(f"note: {notice}")
    stop_request = StopRequest()
    stop_request.listen()
    with claimed_folder(loaded) as folder:
        run = FederatedRun(loaded, folder, stop_request)
        try:
            run.run()
        except (Diverged, EngineFailed) as error:
            print(f"disttrain: {error}", file=sys.stderr)
            return FAILED
        finally:
            run.close()
    return STOPPED if stop_request and not run.completed else DONE


def _merge(parsed: argparse.Namespace) -> int:
    """Merge saved models into their mean, and say what each of them and the mean are worth on the run's validation data. Of one
    RUN, the live models of its workers are merged, as its newest checkpoint has them; of several RUNs, their results, each one's
    model.safetensors. Writes model.safetensors, merge.json and config.yaml; computes on the CPU."""
    from disttrain.merging.command import MergeOptions, merge_runs

    output = None if parsed.output is None else Path(parsed.output)
    merge_runs(MergeOptions(tuple(map(Path, parsed.runs)), output, parsed.step, parsed.buffers))
    return 0


def _report(parsed: argparse.Namespace) -> int:
    """Write one HTML page about runs, side by side: losses against steps, tokens, seconds and bytes, where the time went, and
    what differs in their configs. It opens offline. A run that still goes on is shown as far as it is."""
    from disttrain.recording.report.command import report_on

    print(report_on(tuple(map(Path, parsed.runs)), None if parsed.output is None else Path(parsed.output)))
    return 0


def _prepare(parsed: argparse.Namespace) -> int:
    """Turn text into files of tokens that data.name=prepared reads from disk. Needs little memory and says how far it is; given
    again after an interruption, it goes on where it was."""
    from disttrain.data.preparation.command import DEFAULT_SUFFIXES, PrepareOptions, prepare
    from disttrain.launch.shutdown import StopRequest

    stop_request = StopRequest()
    stop_request.listen()
    suffixes = parsed.suffixes or DEFAULT_SUFFIXES
    options = PrepareOptions(tuple(parsed.paths), Path(parsed.output), parsed.tokenizer, parsed.separator, suffixes, parsed.field)
    return prepare(options, lambda: bool(stop_request))


def _doctor(parsed: argparse.Namespace) -> int:
    """Look at what training and its options need, and say for each thing missing the command that mends it. Exits with 0 when
    training can run. Under torchrun or mpirun, also measures latency and bandwidth between ranks, on every network interface."""
    from disttrain.doctor.command import doctor

    return doctor(parsed.json)


def _show(parsed: argparse.Namespace) -> int:
    """Print the resolved config, each value with where it comes from; the output is a config file again."""
    print(show(load_config(parsed.config, parsed.overrides)), end="")
    return 0


def _suffixes(text: str) -> tuple[str, ...]:
    suffixes = tuple(each.lower() for each in text.split(","))
    if not all(each.startswith(".") and len(each) > 1 for each in suffixes):
        raise argparse.ArgumentTypeError(f"must be endings with a dot, such as .txt,.py, got {text!r}")
    return suffixes


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
