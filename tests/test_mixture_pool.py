"""What proportions are shares of, how often rows may come, and mixtures that follow a plan; through the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from comparing import assert_same_continuation
from harness import Result, start, train, train_all

from dataflex.config import parse
from dataflex.errors import ConfigError

Config = dict[str, Any]
NAMES = ("code", "docs", "arithmetic")
ROWS = 60  # of each domain

SCHEDULE = {"name": "schedule", "points": [[0, [0.5, 0.3, 0.2]], [5, [0.2, 0.2, 0.6]], [9, [0.0, 0.5, 0.5]]]}
LINEAR = {**SCHEDULE, "points": [[0, [0.8, 0.1, 0.1]], [8, [0.0, 0.5, 0.5]]], "interpolate": True, "interval": 3}
TOKENS = {"name": "odm", "interval": 2, "unit": "tokens"}
# 12 rows of code are served by position 26, in the middle of a step and between two updates of the mixer
EXHAUSTED = {
    **{"name": "odm", "warmup": 3, "interval": 4, "proportions": [0.6, 0.2, 0.2]},
    "max_repetition": {"code": 0.2, "docs": 0.5},
}
WEIGHING = {**EXHAUSTED, "name": "own_components:ShareMixer", "warmup": 0, "interval": 1}
MIXTURES: dict[str, Config] = {
    "schedule": {"mix": SCHEDULE},
    "interpolated": {"mix": LINEAR},
    "tokens": {"mix": TOKENS},
    "exhausted": {"mix": EXHAUSTED},
    "exhausted in tokens": {"mix": {**EXHAUSTED, "unit": "tokens"}},
    "weighing": {"mix": WEIGHING},
    "select": {"select": {"name": "random", "warmup": 2, "interval": 4}, "mix": {**SCHEDULE, "unit": "tokens"}},
}


def domains(ids: list[int]) -> list[str]:
    return [NAMES[i // ROWS] for i in ids]


def order(run: Result) -> list[int]:
    return [i for ids in run.ok.ids().values() for i in ids]


def mixing(base: Config, **mix: Any) -> Config:
    return {**base, "dataflex": {"mix": mix}}


def shares(run: Result) -> list[tuple[int, list[float]]]:
    """(position, proportions in force from there on) of every stage."""
    return [(r["position"], r["stage"]["proportions"]) for r in run.ok.ledger() if "stage" in r]


def decisions(run: Result) -> list[Config]:
    """The ledger without what was observed, whose sums may differ in the last bit."""
    return [{k: v for k, v in record.items() if k != "from"} for record in run.ledger()]


def killed_and_resumed(config: Config, tmp_path: Path, step: int, ranks: int = 1) -> tuple[Result, Result]:
    """Saves every second step, is killed after `step` and goes on from the checkpoint before; and the run that is not."""
    config = {**config, "save_strategy": "steps", "save_steps": 2}
    hooks = ["own_component", "record_ids"]
    whole, killed = train_all(
        start(config, tmp_path / "whole", ranks=ranks, hooks=hooks),
        start(config, tmp_path / "killed", ranks=ranks, hooks=[*hooks, f"kill_after:{step}"]),
    )
    assert killed.status == [-9] * ranks
    for file in (tmp_path / "killed").glob("served-*.jsonl"):
        file.unlink()
    resumed = train(config, tmp_path / "killed", ranks=ranks, hooks=hooks)
    assert_same_continuation(resumed, whole, step // 2 * 2)
    return whole, resumed


@pytest.mark.parametrize("name", MIXTURES)
def test_kill_and_resume_is_exact(base: Config, tmp_path: Path, name: str) -> None:
    """From the checkpoint of step 4; with `exhausted`, the cut at position 26 is then known and lies ahead."""
    whole, _ = killed_and_resumed({**base, "dataflex": MIXTURES[name]}, tmp_path, 5)
    assert len(shares(whole)) >= 2


@pytest.mark.parametrize("step", [6, 7])
def test_kill_and_resume_is_exact_around_the_step_a_domain_is_exhausted_in(
    base: Config, tmp_path: Path, step: int
) -> None:
    """Two ranks: the step of the cut is the first after the resume, and killed in it."""
    config = {**base, "per_device_train_batch_size": 2, "dataflex": {"mix": EXHAUSTED}}
    killed_and_resumed(config, tmp_path, step, ranks=2)


@pytest.mark.parametrize("name", ["interpolated", "exhausted in tokens", "select"])
def test_ranks_workers_and_accumulation_do_not_matter(base: Config, tmp_path: Path, name: str) -> None:
    block = json.loads(json.dumps(MIXTURES[name]))
    if block["mix"]["name"] == "odm":  # decides by losses, whose sums differ in the last bit
        block["mix"]["name"] = "random"
    config = {**base, "dataflex": block, "dataloader_num_workers": 2}
    half = {**config, "per_device_train_batch_size": 2}
    hooks = ["own_component", "record_ids"]
    one, two, accumulated = train_all(
        start({**config, "dataloader_num_workers": 0}, tmp_path / "1", hooks=hooks),
        start(half, tmp_path / "2", ranks=2, hooks=hooks),
        start({**half, "gradient_accumulation_steps": 2}, tmp_path / "a", hooks=hooks),
    )
    assert len(order(one)) == 48
    assert two.ok.ids() == one.ids() == accumulated.ok.ids()
    assert decisions(two) == decisions(one) == decisions(accumulated)


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_realized_tokens_stay_within_a_row(base: Config, tmp_path: Path) -> None:
    """Invariant 8 in tokens, from the rows served; and the scalars are in tokens too."""
    from dataflex.plan.quota import SCALE, quantise

    mix = {"name": "random", "interval": 4, "unit": "tokens"}
    run = train(mixing({**base, "cutoff_len": 256}, **mix), tmp_path / "run", hooks=["record_ids", "dump_rows"])
    ids = order(run)
    lengths = [len(row) for row in json.loads((run.out / "rows.json").read_text())["train"]]
    assert len(set(lengths)) > 20
    records = [record for record in run.ledger() if "stage" in record]
    ends = [record["position"] for record in records[1:]] + [len(ids)]
    for record, end in zip(records, ends, strict=True):
        stage, work = record["stage"], [0, 0, 0]
        assert stage["unit"] == "tokens"
        for i in ids[stage["start"] : end]:
            work[i // ROWS] += lengths[i]
            for part, carry, done in zip(quantise(stage["proportions"]), stage["carry"], work, strict=True):
                assert abs(carry + part * sum(work) - done * SCALE) <= max(lengths) * SCALE
    for step, batch in run.ids().items():
        tokens = Counter[str]()
        for i in batch:
            tokens[NAMES[i // ROWS]] += lengths[i]
        seen = {n: run.scalars()[step + 1][f"dataflex/realized/{n}"] for n in NAMES}
        assert seen == pytest.approx({n: tokens[n] / tokens.total() for n in NAMES}, abs=1e-12)


# -- limits ----------------------------------------------------------------------------------------------------------


def test_an_exhausted_domain_leaves_its_share_to_the_others(base: Config, tmp_path: Path) -> None:
    """Twelve rows of code, then none; the cut and both mixtures are in the ledger."""
    run = train(mixing(base, **EXHAUSTED), tmp_path / "run", hooks=["record_ids"])
    ids = order(run)
    assert len(set(ids)) == len(ids) == 48
    last = max(p for p, d in enumerate(domains(ids)) if d == "code")
    assert domains(ids).count("code") == 12 and last == 25
    (cut,) = [r for r in run.ledger() if r["component"] == "exhausted"]
    assert (cut["step"], cut["position"], cut["stage"]["start"]) == (6, 26, 26)
    assert cut["decided"] == {"domain": "code", "proportions": {"code": 0.0, "docs": 0.5, "arithmetic": 0.5}}
    assert cut["from"] == {"rows": 12}
    later = [r["decided"] for r in run.ledger() if r["position"] > 26]
    assert len(later) == 2
    for decided in later:
        asked, in_force = decided["proportions"], decided["in_force"]
        assert asked["code"] > 0 == in_force["code"]
        assert in_force["docs"] == pytest.approx(asked["docs"] / (asked["docs"] + asked["arithmetic"]), abs=1e-11)
    assert [s["dataflex/proportion/code"] > 0 for s in run.scalars().values()] == [True] * 6 + [False] * 6


def test_every_row_once_and_then_the_run_ends(base: Config, tmp_path: Path) -> None:
    """45 steps of 4 rows are all the rows: nothing is missing, and 46 steps cannot be had. Domains end one by one."""
    mix = {"name": "static", "proportions": [0.5, 0.3, 0.2], "max_repetition": 1.0}
    config = mixing({**base, "logging_steps": 10, "save_strategy": "steps", "save_steps": 30}, **mix)
    exact, longer = train_all(
        *(start({**config, "max_steps": n}, tmp_path / str(n), hooks=["record_ids"]) for n in (45, 50))
    )
    assert sorted(order(exact)) == list(range(180))
    assert "the run ends after" not in exact.log
    assert longer.ok.ids() == exact.ids() and longer.ledger() == exact.ledger()
    assert [r["decided"]["domain"] for r in longer.ledger()[1:]] == ["code", "docs"]
    assert longer.log.count("the run ends after step 45: 'arithmetic' has been served as often as max_repetition") == 1
    assert sorted(p.name for p in longer.out.glob("checkpoint-*")) == ["checkpoint-30", "checkpoint-45"]
    assert (longer.out / "checkpoint-45" / "dataflex" / "COMPLETE").is_file()


def test_a_batch_that_cannot_be_filled_is_not_begun(base: Config, tmp_path: Path) -> None:
    """Six rows of each domain: 18 rows, of which two are left over."""
    mix = {"name": "static", "max_repetition": 0.1}
    run = train(mixing(base, **mix), tmp_path / "run", hooks=["record_ids"])
    assert len(order(run)) == 16 and max(Counter(domains(order(run))).values()) <= 6
    assert "the run ends after step 4:" in run.log


def test_stop_ends_the_run_before_the_row_that_may_not_come(base: Config, tmp_path: Path) -> None:
    """At the step whose batch would hold the 13th row of code; resumed, the run ends there again."""
    saved = {**base, "save_strategy": "steps", "save_steps": 5}
    on, stopped = train_all(
        *(
            start(mixing(saved, **EXHAUSTED, when_exhausted=rule), tmp_path / rule, hooks=["record_ids"])
            for rule in ("repeat", "stop")
        )
    )
    position = [p for p, d in enumerate(domains(order(on))) if d == "code"][12]
    steps = position // 4
    assert 5 < steps < 12 and len(order(on)) == 48
    assert stopped.ok.ids() == {s: i for s, i in on.ids().items() if s < steps}
    assert stopped.log.count(f"dataflex: the run ends after step {steps}: 'code' has been served as often as") == 1
    assert sorted(p.name for p in stopped.out.glob("checkpoint-*")) == ["checkpoint-5", f"checkpoint-{steps}"]
    assert (stopped.out / "model.safetensors").is_file()
    again = train(mixing(saved, **EXHAUSTED, when_exhausted="stop"), tmp_path / "stop", hooks=["record_ids"])
    assert again.ok.ids() == stopped.ids()
    assert again.log.count(f"dataflex: the run ends after step {steps}:") == 1


def test_repeat_goes_on_and_says_so_once(base: Config, tmp_path: Path) -> None:
    without = {k: v for k, v in EXHAUSTED.items() if k != "max_repetition"}
    limited, free = train_all(
        start(mixing(base, **EXHAUSTED, when_exhausted="repeat"), tmp_path / "limited", hooks=["record_ids"]),
        start(mixing(base, **without), tmp_path / "free", hooks=["record_ids"]),
    )
    assert limited.ok.ids() == free.ok.ids() and limited.ledger() == free.ledger()
    assert limited.log.count("dataflex: 'code' has been served as often as max_repetition allows (12 rows)") == 1
    assert "'docs' has been served" not in limited.log


# -- mixtures that follow a plan -------------------------------------------------------------------------------------


def test_a_schedule_acts_exactly_at_its_steps(base: Config, tmp_path: Path) -> None:
    run = train(mixing(base, **SCHEDULE), tmp_path / "run")
    assert [(p, pytest.approx(s, abs=1e-11)) for p, s in shares(run)] == [(4 * s, p) for s, p in SCHEDULE["points"]]


def test_an_interpolated_schedule_moves_in_a_line(base: Config, tmp_path: Path) -> None:
    """Updates at steps 0, 3, 6, 9; the last point is that of step 8."""
    run = train(mixing(base, **LINEAR), tmp_path / "run")
    expected = [[0.8 - 0.1 * s, 0.1 + 0.05 * s, 0.1 + 0.05 * s] for s in (0, 3, 6, 8)]
    assert [p for p, _ in shares(run)] == [0, 12, 24, 36]
    assert [s for _, s in shares(run)] == [pytest.approx(e, abs=1e-11) for e in expected]


FIRST = '{"docs": 0.2, "code": 0.7, "arithmetic": 0.1}'
SECOND = "arithmetic: 0.5\ndocs: 0.25\ncode: 2.5e-1\n"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_may_be_edited_while_training(base: Config, tmp_path: Path, ranks: int) -> None:
    """Read at steps 3, 6 and 9: unchanged, new, and unusable (said once), with a kill in between after which the file is
    another one: what was in force at the checkpoint holds up to the next reading."""
    base = {**base, "per_device_train_batch_size": 4 // ranks, "save_strategy": "steps", "save_steps": 2}
    base["max_steps"] = 16
    runs: dict[str, Result] = {}
    for name, kill in (("whole", []), ("killed", ["kill_after:7"])):
        file = tmp_path / f"{name}.yaml"
        file.write_text(FIRST)
        config = mixing(base, name="file", path=str(file), interval=3)
        edits = [f"write_after:5={file}={SECOND}", f"write_after:7={file}=code: [", f"write_after:13={file}={FIRST}"]
        hooks = ["record_ids", *edits]
        runs[name] = train(config, tmp_path / name, ranks=ranks, hooks=[*hooks, *kill])
        if kill:
            assert runs[name].status == [-9] * ranks
            for served in (tmp_path / name).glob("served-*.jsonl"):
                served.unlink()
            file.write_text(SECOND)  # unusable content would be refused at the start
            runs[name] = train(config, tmp_path / name, ranks=ranks, hooks=[*hooks, f"write_after:8={file}=code: ["])
    whole, resumed = runs["whole"], runs["killed"]
    assert_same_continuation(resumed, whole, 6)
    assert [(p, pytest.approx(s, abs=1e-11)) for p, s in shares(whole)] == [
        (0, [0.7, 0.2, 0.1]), (24, [0.25, 0.25, 0.5]), (60, [0.7, 0.2, 0.1]),
    ]  # fmt: skip
    assert [r["component"] for r in whole.ledger()] == ["start", "mix:file", "mix:file"]
    for run in runs.values():
        assert run.log.count("dataflex: the mixture stays as it is: dataflex.mix.path: ") == 1


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_a_replayed_run_serves_the_same_rows(base: Config, tmp_path: Path, unit: str) -> None:
    """Of a mixture that moves at every step; killed and resumed too. The model need not be the same."""
    first = train(mixing(base, name="odm", interval=1, unit=unit), tmp_path / "first", hooks=["record_ids"])
    assert len(shares(first)) > 6
    replay = {"name": "replay", "ledger": str(first.out / "dataflex" / "ledger.jsonl"), "unit": unit}
    config = mixing({**base, "learning_rate": 1e-2}, **replay)
    whole, _ = killed_and_resumed(config, tmp_path / "replay", 7)
    assert whole.ids() == first.ids()
    assert [s for _, s in shares(whole)] == [
        s for i, (_, s) in enumerate(shares(first)) if i == 0 or shares(first)[i - 1][1] != s
    ]


def test_a_replayed_run_exhausts_the_same_domains(base: Config, tmp_path: Path) -> None:
    first = train(mixing(base, **EXHAUSTED), tmp_path / "first", hooks=["record_ids"])
    ledger = str(first.ok.out / "dataflex" / "ledger.jsonl")
    limits = EXHAUSTED["max_repetition"]
    again = train(
        mixing(base, name="replay", ledger=ledger, max_repetition=limits), tmp_path / "again", hooks=["record_ids"]
    )
    assert again.ok.ids() == first.ids()
    assert refusal(mixing(base, name="replay", ledger=ledger)).startswith(
        "dataflex.mix.max_repetition is required: in the run that replay takes up, domains were exhausted"
    )


# -- what is refused -------------------------------------------------------------------------------------------------


def refusal(raw: Config) -> str:
    with pytest.raises(ConfigError) as error:
        parse(raw)
    assert "\n" not in str(error.value)
    return str(error.value)


LEDGER = [
    {
        "component": "start",
        "decided": {"proportions": {"a": 0.5, "b": 0.5}},
        "stage": {"start": 0, "proportions": [0.5, 0.5]},
    },
    {"component": "mix:odm", "decided": {}, "stage": {"start": 6, "proportions": [0.25, 0.75]}},
]
ODM = {"name": "odm", "interval": 5}
POINTS = {"name": "schedule", "points": [[0, [0.5, 0.5]]]}
BAD: list[tuple[Config, str]] = [
    ({**ODM, "proportions": {"a": 0.5, "bb": 0.5}}, "dataflex.mix.proportions: 'bb' is not in dataset; "),
    ({**ODM, "proportions": {"a": 1.0}}, "dataflex.mix.proportions must name every data set of dataset, and 'b' is"),
    ({**ODM, "proportions": {"a": 0.5, "b": 0.6}}, "dataflex.mix.proportions must add up to 1, got [0.5, 0.6]"),
    ({**ODM, "proportions": "none.json"}, "dataflex.mix.proportions must be a file, and none.json does not exist"),
    (
        {**ODM, "proportions": "list.json"},
        "dataflex.mix.proportions: list.json must hold a proportion for each data set",
    ),
    (
        {**ODM, "proportions": 0.5},
        "dataflex.mix.proportions must be a list of numbers, a mapping of names to numbers, or",
    ),
    ({**ODM, "unit": "token"}, "dataflex.mix.unit: 'token' is not a choice; did you mean 'tokens'?"),
    ({**ODM, "max_repetition": 0}, "dataflex.mix.max_repetition must be positive and finite, got 0"),
    ({**ODM, "max_repetition": "often"}, "dataflex.mix.max_repetition must be a number, got 'often'"),
    ({**ODM, "max_repetition": [1.0]}, "dataflex.mix.max_repetition: 1 given for 2 data sets (a, b)"),
    ({**ODM, "max_repetition": {"c": 1}}, "dataflex.mix.max_repetition: 'c' is not in dataset; choose from a, b"),
    ({**ODM, "max_repetition": 1, "when_exhausted": "halt"}, "dataflex.mix.when_exhausted: 'halt' is not a choice"),
    ({"name": "schedule"}, "dataflex.mix.points is required by schedule"),
    ({"name": "schedule", "points": []}, "dataflex.mix.points must be a list of points that begins at step 0"),
    (
        {"name": "schedule", "points": [[2, [0.5, 0.5]]]},
        "dataflex.mix.points must be a list of points that begins at step 0",
    ),
    ({"name": "schedule", "points": [[0, [0.5]]]}, "dataflex.mix.points at step 0 must add up to 1, got [0.5]"),
    (
        {"name": "schedule", "points": [[0, [1.0]]]},
        "dataflex.mix.points: 1 proportions at step 0 for 2 data sets (a, b)",
    ),
    (
        {"name": "schedule", "points": [[0, [0.5, 0.5]], [3, [0.5, 0.5]], [3, [1.0, 0.0]]]},
        "dataflex.mix.points must be in ascending order of steps",
    ),
    (
        {**POINTS, "interpolate": True},
        "dataflex.mix.interval is required: optimizer steps between two updates of schedule",
    ),
    ({"name": "file", "path": "none.json", "interval": 1}, "dataflex.mix.path must be a file, and none.json does not"),
    (
        {"name": "file", "path": "list.json", "interval": 1},
        "dataflex.mix.path: list.json must hold a proportion for each",
    ),
    (
        {"name": "file", "path": "other.yaml", "interval": 1},
        "dataflex.mix.path: 'aa' is not in dataset; did you mean 'a'?",
    ),
    (
        {"name": "file", "path": "ab.yaml"},
        "dataflex.mix.interval is required: optimizer steps between two updates of file",
    ),
    ({"name": "replay", "ledger": "none.jsonl"}, "dataflex.mix.ledger must be a file, and none.jsonl does not exist"),
    ({"name": "replay", "ledger": "ab.yaml"}, "dataflex.mix.ledger: ab.yaml is not the ledger of a run: "),
    ({"name": "replay", "ledger": "empty.jsonl"}, "dataflex.mix.ledger: empty.jsonl records no mixture"),
    (
        {"name": "replay", "ledger": "tokens.jsonl"},
        "dataflex.mix.unit: replay takes shares of tokens, and unit is samples",
    ),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[0.5, 0.5]")
    (tmp_path / "other.yaml").write_text("aa: 0.5\nb: 0.5\n")
    (tmp_path / "ab.yaml").write_text("b: 0.75\na: 25.0e-2\n")
    (tmp_path / "ab.json").write_text('{"b": 0.75, "a": 2.5e-1}')
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LEDGER))
    (tmp_path / "empty.jsonl").write_text("")
    tokens = [{**line, "stage": {**line["stage"], "unit": "tokens"}} for line in LEDGER]  # type: ignore[dict-item]
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tokens))
    return tmp_path


def block(mix: Config, **more: Any) -> Config:
    return {"stage": "sft", "do_train": True, "dataset": "a, b", "dataflex": {"mix": mix, **more}}


@pytest.mark.parametrize("mix, message", BAD)
def test_a_fault_is_one_line_that_names_the_key(files: Path, mix: Config, message: str) -> None:
    assert refusal(block(mix)).startswith(message)


def test_a_limit_beside_select_is_refused_by_name() -> None:
    raw = block({**ODM, "max_repetition": 2}, select={"name": "random", "interval": 5})
    assert refusal(raw).startswith(
        "dataflex.mix.max_repetition counts the rows of whole domains and cannot be combined"
    )


@pytest.mark.parametrize("given", [[0.25, 0.75], {"b": 0.75, "a": 0.25}, "ab.yaml", "ab.json"])
def test_proportions_are_resolved_by_name(files: Path, given: Any) -> None:
    config = parse(block({**ODM, "proportions": given})).dataflex
    assert config is not None and config.mix is not None and config.mix.proportions == (0.25, 0.75)


LIMITS: list[tuple[Any, list[int | None]]] = [
    (2.5, [25, 10]),
    ([None, 1], [None, 4]),
    ({"a": 0.15}, [1, None]),
    (None, [None, None]),
    ([None, None], [None, None]),
]


@pytest.mark.parametrize("given, rows", LIMITS)
def test_limits_become_rows(given: Any, rows: list[int | None]) -> None:
    config = parse(block({**ODM, "max_repetition": given})).dataflex
    assert config is not None and config.mix is not None
    assert config.mix.most_rows(("a", "b"), (10, 4)) == rows


def test_what_has_no_effect_is_said(files: Path) -> None:
    assert parse(block({**ODM, "when_exhausted": "stop"})).notices == (
        "dataflex.mix.when_exhausted has no effect without max_repetition",
    )
    assert parse(block({**POINTS, "interval": 5})).notices == (
        "dataflex.mix: warmup, interval and updates have no effect: schedule brings its own steps",
    )
    assert parse(block({**POINTS, "interpolate": True, "interval": 5})).notices == ()


def test_a_replay_acts_at_the_steps_of_its_positions(files: Path) -> None:
    """Row 6 is step 3 of batches of 2 rows; from a resume at row 4 after step 1 on, step 2; and no step of batches of 4."""
    config = parse(block({"name": "replay", "ledger": "ledger.jsonl"})).dataflex
    assert config is not None and config.mix is not None
    schedule = config.mix.settled(2)
    assert [s for s in range(10) if schedule.due(s)] == [3]
    assert (schedule.next_due(0), schedule.next_due(3), schedule.next_due(4)) == (3, 3, None)
    assert (schedule.turn(3), schedule.turns(3), schedule.turns(4)) == (0, 0, 1)
    assert config.mix.settled(2, (1, 4)).at == (2,)
    for batch, origin in ((4, (0, 0)), (4, (1, 4))):
        with pytest.raises(ConfigError, match="replay acts at row 6, which is not a whole number of steps of 4 rows"):
            config.mix.settled(batch, origin)
    assert config.mix.settled(4, (2, 6)).at == (2,) and config.mix.settled(4, (3, 8)).at == (2,)


@pytest.mark.parametrize(
    "mix, message",
    [
        (
            {"name": "static", "max_repetition": 0.001},
            "dataflex.mix.max_repetition: 0.001 leaves none of the 60 rows of 'code'",
        ),
        (
            {"name": "replay", "ledger": "{ledger}"},
            "dataflex.mix.name: replay acts at row 6, which is not a whole number of",
        ),
    ],
)
def test_what_the_data_cannot_meet_is_said_before_a_model_is_loaded(
    base: Config, tmp_path: Path, mix: Config, message: str
) -> None:
    names = {n: 1 / 3 for n in NAMES}
    lines = [
        {"component": "start", "decided": {"proportions": names}, "stage": {"start": 0, "proportions": [1.0, 0.0, 0.0]}}
    ]
    lines += [{"component": "mix:odm", "decided": {}, "stage": {"start": 6, "proportions": [0.0, 1.0, 0.0]}}]  # type: ignore[dict-item]
    file = tmp_path / "ledger.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mix = {k: str(file) if v == "{ledger}" else v for k, v in mix.items()}
    run = train(mixing(base, **mix), tmp_path / "run", hooks=["no_model"])
    assert run.status == [2]
    assert f"dataflex: error: {message}" in run.log
