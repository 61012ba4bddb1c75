"""What a matrix of runs does with one checkout, against what it does with another one, to the bit.

    python benchmarks/unchanged/unchanged.py record --python OLD/.venv/bin/python --out DIR/old
    python benchmarks/unchanged/unchanged.py record --python NEW/.venv/bin/python --out DIR/new
    python benchmarks/unchanged/unchanged.py compare DIR/old DIR/new [--format-may-change]
    python benchmarks/unchanged/unchanged.py resume --from DIR/old --python NEW/.venv/bin/python --out DIR/on

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from chains import runs  # noqa: E402
from differences import compare_records, continued  # noqa: E402
from matrix import Step  # noqa: E402


def environment(python: Path, out: Path, ground: Path, source: Path | None = None) -> dict[str, str]:
    """Of all processes: the CPU alone, one thread, nothing from the network."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHONHOME")}
    return env | {
        "PYTHONPATH": os.pathsep.join([str(HERE / "path"), *([str(source)] if source else [])]),
        "PATH": os.pathsep.join([str(python.parent), env.get("PATH", "")]),
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(out / "cache"),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TORCH_EXTENSIONS_DIR": str(ground / "torch-extensions"),
        "NINJA_STATUS": "",
        "PYTHONHASHSEED": "0",
    }


def make_ground(python: Path, ground: Path, env: dict[str, str]) -> None:
    if (ground / "COMPLETE").is_file():
        return
    if ground.exists():
        raise SystemExit(f"{ground} is there, and not complete: remove it")
    print(f"making data and models in {ground}", flush=True)
    subprocess.run([python, "-P", HERE / "ground.py", ground], env=env, check=True)


def filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: filled(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, places) for v in value]
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(name, place)
    return value


def job(steps: list[Step], folder: Path, ground: Path) -> dict[str, Any]:
    """Write the configurations of a run into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, step in enumerate(steps):
        config = filled(step.config, {"{ground}": str(ground), "{run}": str(folder)})
        config["output_dir"] = str(folder / step.out)
        if "deepspeed" in config:
            engine = folder / "deepspeed.json"
            engine.write_text(json.dumps(config["deepspeed"]))
            config["deepspeed"] = str(engine)
        file = folder / f"config-{number}.yaml"
        file.write_text(json.dumps(config, indent=1))
        arguments = [step.command, str(file)]
        written.append({"arguments": arguments, "ranks": step.ranks, "env": step.env, "out": step.out})
    return {"folder": str(folder), "steps": written}


def put_together(out: Path, ground: Path, source: Path | None = None) -> dict[str, Any]:
    """The records of all folders, also written to one file."""
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("*/record.json"))}
    (out / "record.json").write_text(json.dumps({"ground": str(ground), "from": source and str(source), "runs": found}))
    failed = [name for name, run in found.items() if any(map(any, run["status"]))]
    seconds = sum(run["seconds"] for run in found.values())
    print(f"{len(found)} runs in {out / 'record.json'}, {seconds:.0f} s; failed: {failed or 'none'}")
    return found


def reread(given: argparse.Namespace) -> int:
    out = given.out.resolve()
    before = json.loads((out / "record.json").read_text())
    ground, source = Path(before["ground"]), before.get("from") and Path(before["from"])
    outs = {name: [step.out for step in steps] for name, steps in wanted(given.only).items()}
    file = out / "jobs.json"
    file.write_text(
        json.dumps({"out": str(out), "ground": str(ground), "outs": outs, "places": places_of(out, ground, source)})
    )
    subprocess.run(
        [given.python, "-P", HERE / "collect.py", file], env=environment(given.python, out, ground), check=True
    )
    put_together(out, ground, source)
    return 0


def places_of(out: Path, ground: Path, source: Path | None) -> dict[str, str]:
    """What stands for paths in records. source: where the runs come from that are gone on with."""
    before = {str(source / name): "<run>" for name in runs()} if source else {}
    return {str(out): "<out>", str(ground): "<ground>", **before}


def carry_out(given: argparse.Namespace, out: Path, ground: Path, jobs: list[dict[str, Any]]) -> None:
    """Run what has no record yet, then put the records of all folders together."""
    python, env = given.python, environment(given.python, out, ground, given.src)
    source = given.source.resolve() if "source" in given else None
    places = places_of(out, ground, source)
    file = out / "jobs.json"
    file.write_text(json.dumps({"at once": given.jobs, "places": places, "runs": jobs}))
    if jobs:
        subprocess.run([python, "-P", HERE / "forks.py", file], env=env, check=True)
    found = put_together(out, ground, source)
    missing = [Path(j["folder"]).name for j in jobs if Path(j["folder"]).name not in found]
    if missing:
        raise SystemExit(f"without a record: {missing}")


def record(given: argparse.Namespace) -> int:
    out = given.out.resolve()
    ground = (given.ground or out.parent / "ground").resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_ground(given.python, ground, environment(given.python, out, ground))
    jobs = []
    for name, steps in wanted(given.only).items():
        if not (out / name / "record.json").is_file():
            shutil.rmtree(out / name, ignore_errors=True)
            jobs.append(job(steps, out / name, ground))
    carry_out(given, out, ground, jobs)
    return 0


def wanted(only: str | None) -> dict[str, list[Step]]:
    return {name: steps for name, steps in runs().items() if asked(name, only)}


def asked(name: str, only: str | None) -> bool:
    return only is None or any(fnmatch.fnmatch(name, pattern) for pattern in only.split(","))


def middle(out: Path) -> Path | None:
    """The first checkpoint, if there is a later one."""
    found = sorted(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return found[0] if len(found) > 1 else None


def resume(given: argparse.Namespace) -> int:
    out, old = given.out.resolve(), given.source.resolve()
    before = json.loads((old / "record.json").read_text())
    ground = Path(before["ground"])
    out.mkdir(parents=True, exist_ok=True)
    jobs, going_on = [], []
    for name, steps in wanted(given.only).items():
        start = middle(old / name / steps[-1].out)
        if start is None or not steps[-1].resumes or name not in before["runs"]:
            continue
        going_on.append(name)
        if (out / name / "record.json").is_file():
            continue
        shutil.rmtree(out / name, ignore_errors=True)
        for part in [step.out for step in steps[:-1]] + ["tokens"]:  # what it reads of its steps before
            if (old / name / part).is_dir():
                shutil.copytree(old / name / part, out / name / part)
        target = out / name / steps[-1].out
        shutil.copytree(start, target / start.name)
        if (start.parent / "dataflex").is_dir():
            shutil.copytree(start.parent / "dataflex", target / "dataflex")
        jobs.append(job(steps[-1:], out / name, ground))
    carry_out(given, out, ground, jobs)
    after = json.loads((out / "record.json").read_text())["runs"]
    return told({n: continued(before["runs"][n], after[n]) for n in going_on}, given.format_may_change)


def compare(given: argparse.Namespace) -> int:
    sides = [json.loads((d / "record.json").read_text())["runs"] for d in (given.old, given.new)]
    names = [n for n in sides[0] | sides[1] if asked(n, given.only)]
    found = {}
    for name in sorted(names):
        if name in sides[0] and name in sides[1]:
            found[name] = compare_records(sides[0][name], sides[1][name])
        else:
            found[name] = {"run": f"only in {given.old if name in sides[0] else given.new}"}
    return told(found, given.format_may_change)


def told(found: dict[str, dict[str, str]], format_may_change: bool) -> int:
    """A line per run; status 1 if any of them differs. found: name -> kind of difference -> the first of them."""
    failures = 0
    for name, differences in found.items():
        counted = {kind: text for kind, text in differences.items() if not (format_may_change and kind == "format")}
        failures += bool(counted)
        lines = [f"{kind}: {text}" for kind, text in (counted or differences).items()]
        print(f"{name}: {'DIFFERS' if counted else 'equal'}{''.join('; ' + line for line in lines[:3])}")
    print(f"{len(found)} runs, {failures} differ")
    return 1 if failures or not found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, act in (("record", record), ("compare", compare), ("resume", resume), ("reread", reread)):
        own = commands.add_parser(name)
        own.set_defaults(act=act)
        own.add_argument("--only", help="patterns of names of runs, with commas between them")
        if name == "compare":
            own.add_argument("old", type=Path)
            own.add_argument("new", type=Path)
        else:
            own.add_argument("--python", type=lambda p: Path(p).absolute(), required=True)
            own.add_argument("--out", type=Path, required=True)
            own.add_argument(
                "--src", type=lambda p: Path(p).absolute(), help="folder of the package, if not PYTHON's own"
            )
            own.add_argument("--jobs", type=int, default=1, help="runs at once")
        if name == "reread":
            continue
        if name == "record":
            own.add_argument(
                "--ground", type=Path, help="data and models; else OUT/../ground, made where there is none"
            )
        else:
            own.add_argument(
                "--format-may-change", action="store_true", help="files of our own in checkpoints may differ"
            )
        if name == "resume":
            own.add_argument("--from", dest="source", type=Path, required=True)
    given = parser.parse_args()
    return given.act(given)


if __name__ == "__main__":
    sys.exit(main())
