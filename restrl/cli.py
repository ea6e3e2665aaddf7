"""The command line. Heavy imports happen after the arguments are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from restrl import __version__
from restrl.errors import RestrlError

EPILOG = "A run folder can be killed at any moment: the same command goes on where it stopped."
STAGE_HELP = {
    "sample": "draw and verify completions of the training problems",
    "assemble": "keep prompts whose rewards vary, add partial programs",
    "train-policy": "train the policy with GRPO or SFT",
    "collect": "search the training problems with true rewards for value targets",
    "train-value": "train the value model",
    "decode": "answer the test problems with every decoding method",
    "evaluate": "verify the answers and write results",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends with one sentence on stderr and exit code 2, Ctrl-C with 130."""
    args = _parse(argv)
    try:
        code = args.run(args)
    except RestrlError as error:
        print(f"restrl: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nrestrl: stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 141
    raise SystemExit(code)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with overrides (`section.key=value`) before or after the options."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-") and "overrides" in args]
    if len(late) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in late)}")
    if late:
        args.overrides += late
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="restrl",
        description="Improve a code-writing language model with nothing but problems and tests.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"restrl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("demo", help="the whole method on a small shipped policy, in minutes")
    p.add_argument("--out", type=Path, default=Path("restrl-demo"), help="folder to write to (restrl-demo)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--short", action="store_true", help="everything smaller: about two minutes")
    p.set_defaults(run=_demo)

    p = commands.add_parser("run", help="all stages of a config")
    _config_arguments(p)
    p.set_defaults(run=_run)
    for name, text in STAGE_HELP.items():
        p = commands.add_parser(name, help=text)
        _config_arguments(p)
        p.add_argument("--iteration", type=int, help="of ReST-GRPO (the last one)")
        p.set_defaults(run=_stage, stage=name)

    p = commands.add_parser("verify", help="verify samples: verdicts and pass@k")
    p.add_argument("--problems", type=Path, required=True)
    p.add_argument(
        "--samples", type=Path, required=True, help='JSONL: {"task_id", "solution" | "completion"}'
    )
    p.add_argument("--out", type=Path, required=True, help="JSONL: one verdict per sample, in input order")
    p.add_argument("--since", type=date.fromisoformat, metavar="DATE", help="contests from this day on")
    p.add_argument("--until", type=date.fromisoformat, metavar="DATE", help="contests up to this day")
    _verifier_arguments(p)
    p.set_defaults(run=_verify)

    p = commands.add_parser("validate", help="do the reference solutions of a problem file pass?")
    p.add_argument("file", type=Path)
    _verifier_arguments(p)
    p.set_defaults(run=_validate)

    p = commands.add_parser("doctor", help="what this machine offers: isolation, devices, versions")
    p.set_defaults(run=_doctor)

    p = commands.add_parser("bench", help="the engine's behaviour signature; what else can be measured")
    p.add_argument("name", nargs="?", choices=("signature",), help="what to run (a list of what there is)")
    p.set_defaults(run=_bench)

    p = commands.add_parser("report", help="one HTML page from a run or demo folder")
    p.add_argument("folder", type=Path)
    p.set_defaults(run=_report)
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="TOML file, see docs/config.md")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def _verifier_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        default="auto",
        help="auto, or a format of docs/formats.md: humaneval, evalplus, ... (auto)",
    )
    parser.add_argument("--timeout", type=float, default=6.0, help="seconds per test (6)")
    parser.add_argument("--workers", type=int, default=2, help="programs verified at once (2)")
    parser.add_argument("--allow-unsafe", action="store_true", help="run with less isolation than tier 2")


def _demo(args: argparse.Namespace) -> int:
    from restrl.demo import demo

    demo(args.out, seed=args.seed, short=args.short)
    return 0


def _run(args: argparse.Namespace) -> int:
    return _with_run(args, None)


def _stage(args: argparse.Namespace) -> int:
    return _with_run(args, args.stage)


def _with_run(args: argparse.Namespace, stage: str | None) -> int:
    from restrl import config as configuration

    config = configuration.load(args.config, args.overrides)
    if stage and args.iteration is not None and not 1 <= args.iteration <= config.iterations:
        raise RestrlError(f"--iteration {args.iteration} is not in 1..{config.iterations}")
    if args.dry_run:
        print(configuration.dump(config), end="")
        return 0
    from restrl.pipeline import Run

    with Run.open(config) as run:
        if stage is None:
            run.all()
        else:
            run.stage(stage, args.iteration)
        if stage in (None, "evaluate") and config.problems.test is not None:
            print(run.results())
        page = run.folder / "report.html"
        if stage is None and not page.exists():
            from restrl.report import write_report

            write_report(run.folder)
        print(f"done: {page if stage is None else run.folder}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from restrl.stages.verify import verify_file

    verify_file(
        args.problems, args.samples, args.out, format=args.format, timeout=args.timeout,
        workers=args.workers, allow_unsafe=args.allow_unsafe, since=args.since, until=args.until,
    )  # fmt: skip
    return 0


def _validate(args: argparse.Namespace) -> int:
    from restrl.stages.validate import validate_file

    ok = validate_file(
        args.file, format=args.format, timeout=args.timeout, workers=args.workers,
        allow_unsafe=args.allow_unsafe,
    )  # fmt: skip
    return 0 if ok else 1


def _doctor(args: argparse.Namespace) -> int:
    from restrl.doctor import examine

    lines, well = examine()
    print("\n".join(lines))
    return 0 if well else 1


def _bench(args: argparse.Namespace) -> int:
    from restrl.bench import LISTING, search_signature

    print(search_signature() if args.name == "signature" else LISTING)
    return 0


def _report(args: argparse.Namespace) -> int:
    from restrl.report import write_report

    print(write_report(args.folder))
    return 0
