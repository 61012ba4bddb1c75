"""`report` and `show`: every figure is made again here from the files of a run, by other code."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from harness import start, tiny_run, train, train_all
from rich.console import Console

from dataflex.cli.results.report import _stamps, _wait
from dataflex.plan.plan import Domains
from dataflex.reading import Run, open_runs
from dataflex.reading.log import Log
from dataflex.record.ledger import RunFiles
from dataflex.record.selection_file import SelectionRecord
from dataflex.report.charts import weight_charts
from dataflex.report.page import page
from dataflex.report.questions import end_of, question, shortened
from dataflex.report.rows import losses_table
from dataflex.report.tables import (
    Table,
    cost_table,
    domains_table,
    final_losses,
    selections_table,
    tables_of,
    weights_table,
)
from dataflex.report.terminal import show_table
from dataflex.report.words import duration, visible

Config = dict[str, Any]
SAVED: Config = {"save_strategy": "steps", "save_steps": 4}
ALL: Config = {
    "select": {"name": "loss", "warmup": 2, "interval": 3, "focus": "high", "keep_ratio": 0.4},
    "mix": {"name": "odm", "warmup": 2, "interval": 2},
    "weight": {"name": "loss", "warmup": 1},
}
HELD_OUT: Config = {
    "eval_dataset": "code_heldout,docs_heldout,arithmetic_heldout", "eval_on_each_dataset": True, "do_eval": True,
    "eval_strategy": "steps", "eval_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of: everything at once on two ranks, one that selects, one killed, one that streams, one without a block."""
    base, where = tiny_run(ground), tmp_path_factory.mktemp("runs")
    stream = {**base, "stage": "pt", "dataset": "code,docs", "streaming": True, "cutoff_len": 24}
    del stream["template"]
    configs: dict[str, tuple[Config, dict[str, Any]]] = {
        "all": ({**base, **HELD_OUT, "dataflex": ALL}, {"ranks": 2}),
        "select": ({**base, "dataflex": {"select": {"name": "loss", "interval": 4, "focus": "high"}}}, {}),
        "killed": ({**base, **SAVED, "dataflex": {"mix": ALL["mix"]}}, {"hooks": ["kill_after:7"]}),
        "stream": ({**stream, "dataflex": {"mix": {"name": "random", "interval": 4, "stream_block": 8}}}, {}),
        "plain": ({**base, **HELD_OUT}, {}),
    }
    found = train_all(*(start(config, where / name, **more) for name, (config, more) in configs.items()))
    for name, result in zip(configs, found, strict=True):
        assert name == "killed" or result.ok
    return {name: where / name for name in configs}


def opened(path: Path) -> Run:
    (run,) = open_runs([path])
    return run


def cells(table: Table | None) -> dict[str, dict[str, str]]:
    assert table is not None
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def logged(path: Path) -> pd.DataFrame:
    """Steps with a loss."""
    lines = [json.loads(line) for line in (path / "trainer_log.jsonl").read_text().splitlines()]
    return pd.DataFrame([line for line in lines if "loss" in line])


def seconds_of_evaluations(path: Path, from_step: int = 0) -> float:
    """As LLaMA-Factory says: those in training from a step on, and the one after it."""
    history = json.loads((path / "trainer_state.json").read_text())["log_history"]
    final = json.loads((path / "eval_results.json").read_text())
    found = [final, *(record for record in history if record["step"] >= from_step)]
    return sum(value for record in found for name, value in record.items() if re.fullmatch(r"eval_\w+_runtime", name))


def ledger(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "dataflex" / "ledger.jsonl").read_text().splitlines()]


def figures(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    assert found is not None
    return list(json.loads(found.group(1)))


def numbers(packed: Any) -> np.ndarray:
    if isinstance(packed, list):
        return np.array(packed)
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=f"<{packed['dtype']}")


def charts(run: Run) -> dict[str, dict[str, Any]]:
    """By title, in the order of the page; of a title that is there twice, the last."""
    text = page([run], "a run")
    titles = re.findall(r'<figure class="chart"><figcaption>(.*?)</figcaption>', text)
    return dict(zip(titles, figures(text), strict=True))


# -- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "select"])
def test_domains_are_as_the_files_say(runs: dict[str, Path], name: str) -> None:
    path, log = runs[name], logged(runs[name])
    run, table = opened(path), cells(domains_table(opened(path)))
    seen = pd.read_parquet(path / "dataflex" / "exposure.parquet")
    for domain in ("code", "docs", "arithmetic"):
        own, row = seen[seen.domain == domain].times_seen, table[domain]
        size = run.record["domains"][domain]["rows"]
        assert row["rows"] == str(size)
        assert row["rows seen"] == str(len(own)) and row["most repeated"] == f"{own.max()} x"
        assert row["epochs"] == f"{own.sum() / size:.2f}"
        share = log[f"dataflex/realized/{domain}"].mean()  # every step is logged
        assert row["served"] == (f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %")
        assert own.sum() == round(share * len(log) * (8 if name == "all" else 4))
        losses = log[f"dataflex/loss/{domain}"].dropna()
        assert row["train loss"] == f"{losses.iloc[0]:.3f} > {losses.iloc[-1]:.3f}"
    if name == "all":
        lines = [line for line in ledger(path) if line["component"] == "evaluate"]
        assert [line["step"] for line in lines][:3] == [4, 8, 12]
        first, last = lines[0]["from"], lines[-1]["from"]
        assert table["code"]["held-out loss"] == f"{first['loss']['code']:.3f} > {last['loss']['code']:.3f}"
        mean = [np.mean(list(line["loss"].values())) for line in (first, last)]
        assert table["mean of domains"]["held-out loss"] == f"{mean[0]:.3f} > {mean[1]:.3f}"


@pytest.mark.parametrize("name", ["all", "select"])
def test_a_selection_is_summed_up_as_its_rows_say(runs: dict[str, Path], name: str) -> None:
    """Also of a file without the summary, as older versions wrote it."""
    run, before = opened(runs[name]), None
    table = cells(selections_table(run))
    assert len(run.selections) == len(list((runs[name] / "dataflex" / "selections").glob("*.parquet"))) > 1
    for selection in run.selections:
        rows = pd.read_parquet(selection.path)
        taken = rows[rows.selected]
        summary = selection.summary
        assert summary.looked_at == rows.groupby("domain", observed=False).size().to_dict()
        assert summary.selected == taken.groupby("domain", observed=False).size().to_dict()
        assert summary.drawn == len(taken) and summary.scores is not None
        scores = summary.scores
        for spread, some in ((scores.all, rows.score.dropna()), (scores.selected, taken.score.dropna())):
            assert spread.mean == pytest.approx(some.mean(), rel=1e-12)
            assert list(spread.quantiles) == pytest.approx(
                some.quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist(), rel=1e-12
            )
            bins = pd.cut(some, np.array(scores.edges), include_lowest=True, right=False)
            most = some == some.max() if spread is scores.all else some == rows.score.max()
            counted = bins.value_counts(sort=False).to_numpy()
            counted[-1] += int((most & bins.isna()).sum())
            assert list(spread.counts) == counted.tolist()
        if name == "select":  # of all data, by the highest losses in the end
            left = rows[~rows.selected].score.max()
            assert scores.cut == (None if left > taken.score.min() else (left, taken.score.min()))
        row = table[str(selection.step)]
        assert row["rows taken"] == f"{len(taken)} of {len(rows)}"
        if before is not None:
            share = taken.sample_id.isin(before).mean()
            assert row["as last time"].startswith(f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %")
        before = set(taken.sample_id)
        pq.write_table(pq.read_table(selection.path).replace_schema_metadata(None), runs[name] / "old.parquet")
        older = type(selection)(runs[name] / "old.parquet", selection.step, selection.line)
        assert older.summary == summary


def test_ranks_and_stored_rows_of_a_selection(runs: dict[str, Path], ground: Path) -> None:
    """A rank counts from 1 within a domain where each is selected from apart; a stored row says what the file says."""
    for name in ("all", "select"):
        for selection in opened(runs[name]).selections:
            rows = pd.read_parquet(selection.path)
            for _, own in rows.groupby("domain", observed=True) if name == "all" else [(None, rows)]:
                taken = own[own.selected].sort_values("rank")
                assert taken["rank"].tolist() == list(range(1, len(taken) + 1))
                assert own[~own.selected]["rank"].isna().all()
    run = opened(runs["select"])
    info = json.loads((ground / "data" / "dataset_info.json").read_text())
    for row in run.selections[-1].rows(range(0, 180, 17)):
        if row.text is not None:
            stored = json.loads(
                (ground / "data" / info[row.domain]["file_name"]).read_text().splitlines()[row.row or 0]
            )
            answer = stored["messages"][-1]["content"] if "messages" in stored else stored["output"]
            assert answer.strip().startswith(row.text[1][:12])


def test_weights_and_time(runs: dict[str, Path]) -> None:
    path, log = runs["all"], logged(runs["all"])
    (row,) = cells(weights_table(opened(path))).values()
    effective = log["dataflex/weight/effective_share"].dropna()
    assert row["smallest"] == f"{log['dataflex/weight/min'].min():.3f}"
    assert row["effective share, mean"] == f"{100 * effective.mean():.0f} %"
    weights = pd.read_parquet(path / "dataflex" / "exposure.parquet").last_weight.dropna()
    (number,) = pd.read_parquet(path / "dataflex" / "exposure.parquet").sample_id[weights.index[:1]]
    assert losses_table(opened(path), number).rows[-1][-1] == f"{weights.iloc[0]:.3f}"
    (bars,) = weight_charts(opened(path))["Weights of rows when last trained on"]["data"]
    bins = pd.cut(weights, np.linspace(weights.min(), weights.max(), 41), include_lowest=True)
    assert sum(bars["y"]) == len(weights) > 10
    assert list(bars["y"]) == bins.value_counts(sort=False).tolist()
    cost = opened(path).cost
    spent = pd.DataFrame(ledger(path)).groupby("component").seconds.agg(["count", "sum"])
    for name in ("select:loss", "mix:odm", "evaluate"):
        assert cost.components[name].decisions == spent.loc[name, "count"]
        assert cost.components[name].seconds == pytest.approx(spent.loc[name, "sum"])
    assert cost.total == pytest.approx(sum(cost.kinds.values()))
    for kind in ("loading", "selecting", "saving"):
        assert cost.kinds[kind] == log[f"dataflex/seconds/{kind}"].max()
    after = seconds_of_evaluations(path, from_step=12)  # the last log of a loss comes before the evaluation of its step
    assert after > 0 and cost.kinds["evaluating"] == pytest.approx(log["dataflex/seconds/evaluating"].max() + after)
    assert cost.total == pytest.approx(log["dataflex/seconds/total"].max() + after)
    (said,) = re.findall(r"^dataflex: done .*evaluating (\d+) %", (path / "log-0.txt").read_text(), re.M)
    assert 100 * cost.share("evaluating") == pytest.approx(int(said), abs=3)  # the summary knows the last saving, too
    (told,) = re.findall(r"^evaluating +(\d.*?) +[\d.]+ %", command("report", str(path)).stdout, re.M)
    assert told == duration(cost.kinds["evaluating"])
    assert cells(cost_table(opened(path)))["training"]["share"].endswith("%")


def test_charts_hold_what_the_files_say(runs: dict[str, Path]) -> None:
    found, log = charts(opened(runs["all"])), logged(runs["all"])
    served = {trace["name"]: trace for trace in found["Served"]["data"]}
    for domain in ("code", "docs", "arithmetic"):
        assert numbers(served[domain]["x"]).tolist() == log.current_steps.tolist()
        assert numbers(served[domain]["y"]) == pytest.approx(log[f"dataflex/realized/{domain}"].to_numpy(), rel=1e-6)
    stages = [line for line in ledger(runs["all"]) if "stage" in line]
    asked = {trace["name"]: trace for trace in found["Asked for"]["data"]}
    shares = [line["stage"]["proportions"][0] for line in stages]
    assert stages[-1]["step"] < 12  # and what was asked for last holds to the end of the run
    assert numbers(asked["code"]["x"]).tolist() == [*(line["step"] for line in stages), 12]
    assert numbers(asked["code"]["y"]) == pytest.approx([*shares, shares[-1]], rel=1e-6)
    losses = {trace["name"]: numbers(trace["y"]) for trace in found["Train loss"]["data"]}
    assert losses["all"] == pytest.approx(log.loss.to_numpy(), rel=1e-6)
    held_out = {trace["name"]: numbers(trace["y"]) for trace in found["Held-out bits per byte"]["data"]}
    lines = [line["from"] for line in ledger(runs["all"]) if line["component"] == "evaluate"]
    assert held_out["docs"][:3] == pytest.approx([line["bits_per_byte"]["docs"] for line in lines[:3]], rel=1e-6)
    seen = pd.read_parquet(runs["all"] / "dataflex" / "exposure.parquet")
    bars = {
        trace["name"]: dict(zip(trace["x"], trace["y"])) for trace in found["Rows by how often they were seen"]["data"]
    }
    for times, own in seen.groupby("times_seen"):
        assert bars[f"{times} x"] == {d: int((own.domain == d).sum()) for d in ("code", "docs", "arithmetic")}
    last = pd.read_parquet(opened(runs["all"]).selections[-1].path)
    histogram = found["Scores"]["data"]
    assert sum(histogram[0]["y"]) == last.selected.sum() and sum(histogram[1]["y"]) == (~last.selected).sum()


def test_a_name_has_one_colour_in_all_charts(runs: dict[str, Path]) -> None:
    """Kinds of time whatever other kinds a run has; domains in losses and mixtures."""
    found = [charts(opened(runs[name])) for name in ("all", "select", "plain")]
    shades: dict[str, set[str]] = {}
    for each in found:
        for trace in each["Time"]["data"]:
            shades.setdefault(trace["name"], set()).add(trace["marker"]["color"])
    assert {"training", "loading", "evaluating"} <= set(shades) and all(len(own) == 1 for own in shades.values())
    assert len(set.union(*shades.values())) == len(shades)
    domains: dict[str, set[str]] = {}
    for title in ("Asked for", "Served", "Train loss", "Held-out loss", "Held-out perplexity"):
        for trace in found[0][title]["data"]:
            domains.setdefault(trace["name"], set()).add(trace["line"]["color"])
    assert {"code", "docs", "arithmetic", "all"} <= set(domains) and all(len(own) == 1 for own in domains.values())


def test_a_page_of_a_run_with_a_block_beside_one_without(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    ended = command("report", str(runs["plain"]), str(runs["all"]), str(runs["select"]), "--html", str(file))
    assert ended.returncode == 0, ended.stderr
    text = file.read_text()
    assert "<section><h3>Settings that differ</h3>" in text and "dataflex.mix.name" in text
    (time,) = [
        f for f in figures(text) if f["layout"]["xaxis"]["title"]["text"] == "seconds" and len(f["data"][0]["y"]) == 3
    ]
    plain, whole = opened(runs["plain"]).cost, opened(runs["all"]).cost
    assert plain.kinds["evaluating"] == pytest.approx(seconds_of_evaluations(runs["plain"]))
    for trace in time["data"]:
        assert trace["x"][:2] == pytest.approx([cost.kinds.get(trace["name"], 0.0) for cost in (plain, whole)])


def finished_run(folder: Path, name: str, seed: int, losses: list[float]) -> str:
    """The files of a run that this needs, in a directory with the seed in its name."""
    out = folder / f"{name}-{seed}"
    (out / "dataflex").mkdir(parents=True)
    found = {f"eval_{domain}_loss": loss for domain, loss in zip(("code", "docs"), losses)}
    for file in ("all_results.json", "eval_results.json"):
        (out / file).write_text(json.dumps({**found, "train_runtime": 9.0}))
    (out / "trainer_state.json").write_text(json.dumps({"global_step": 4, "max_steps": 4, "log_history": []}))
    block = {"select": {"name": name, "interval": 2}}
    (out / "dataflex" / "config.yaml").write_text(json.dumps({"dataflex": block, "llamafactory": {"seed": seed}}))
    (out / "trainer_log.jsonl").write_text('{"current_steps": 4, "total_steps": 4, "loss": 2.0}\n')
    return str(out)


@pytest.mark.slow
def test_several_runs_are_shown_with_their_noise(tmp_path: Path) -> None:
    """Of one method with several seeds what `compare` says; of one seed that it says nothing."""
    offsets = (0.0, 0.04, -0.03)
    paths = [finished_run(tmp_path, "random", seed, [2 + d, 3 - d]) for seed, d in enumerate(offsets)]
    paths += [finished_run(tmp_path, "loss", seed, [1.8 + d, 2.9 - 2 * d]) for seed, d in enumerate(offsets)]
    compared = json.loads(command("compare", *paths, "--json").stdout)["metrics"]["loss/mean"]["select loss"]
    (low, high), p = compared["difference"]["interval"], compared["difference"]["p_holm"]
    ended = command("report", *paths)
    assert ended.returncode == 0, ended.stderr
    (line,) = re.findall(r"^select loss .*$", ended.stdout, re.M)
    assert f"{low:+.3g} to {high:+.3g}" in line and f"  {p:.2g}  " in line and compared["verdict"] in line
    assert "One seed" not in ended.stdout
    one = "One seed cannot tell an effect from noise; dataflex-cli compare GRID.yaml trains several"
    assert (
        one in command("report", paths[0], paths[3]).stdout
        and "95 %" not in command("report", paths[0], paths[3]).stdout
    )
    file = tmp_path / "report.html"
    for some, said in ((paths, f"{low:+.3g} to {high:+.3g}"), ([paths[0], paths[3]], one)):
        assert command("report", *some, "--html", str(file)).returncode == 0
        assert said in file.read_text()
    unknown = tmp_path / "somewhere"  # without a block, and with no seed in its name
    Path(paths[5]).rename(unknown)
    (unknown / "dataflex" / "config.yaml").unlink()
    told = command("report", paths[0], str(unknown)).stdout.replace("\n", " ")
    assert "Not compared over seeds:" in told and "let its directory end in the seed" in told


# -- texts in short -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "system\nYou are a helpful assistant.\nuser\nWhat is 3 + 4?\nassistant",
        "You are helpful. USER: What is 3 + 4? ASSISTANT:",
        "### Instruction:\nWhat is 3 + 4?\n\n### Response:\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 3 + 4?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "[INST] What is 3 + 4? [/INST]",
        "user\nHello\nassistant\nHello, user: what?\nuser\nWhat is 3 + 4?\nassistant",
    ],
)
def test_a_question_is_found_in_what_templates_write(prompt: str) -> None:
    assert question(prompt) == "What is 3 + 4?"


def test_texts_are_cut_between_words() -> None:
    assert question("The answer is on the model's page: 3 + 4") is None
    assert end_of("You are a helpful assistant.\nWhat is the sum?", 20) == "…What is the sum?"
    assert end_of("What is\nthe sum?", 20) == "What is the sum?"
    assert shortened("What is  the\nsum of them?", 14) == "What is the…"
    assert shortened("word " * 10, 13) == "word word…" and shortened("y" * 30, 10) == "y" * 9 + "…"


def test_rows_begin_with_their_questions(runs: dict[str, Path]) -> None:
    """Of rows whose text is kept, and of those read from the data, in the terminal and in a page."""
    info = opened(runs["select"]).record["llamafactory"]["dataset_dir"]
    ended = command("show", str(runs["select"]), "--top", "200", columns=80)
    assert ended.returncode == 0, ended.stderr
    shown = dict(re.findall(r"^(\w+:\d+)  (.*)$", ended.stdout.partition("\n\n")[2], re.M))
    kept = {f"{row.domain}:{row.row}" for row in opened(runs["select"]).selections[-1].rows(range(180)) if row.text}
    assert len(shown) == 180 and 0 < len(kept) < 180
    for name, text in shown.items():
        domain, _, number = name.partition(":")
        stored = json.loads((Path(info) / f"{domain}.jsonl").read_text().splitlines()[int(number)])
        begin = stored["instruction"].split()[:3]
        assert text.split()[:3] == begin, (name, text)
    begins = re.findall(r'<span class="begin">(.*?)</span>', page([opened(runs["select"])], "a run"))
    assert len(begins) > 20 and not any(begin.startswith(("system", "user", "(text")) for begin in begins)


# -- runs that are not whole ----------------------------------------------------------------------------------------------


def test_a_killed_run_with_torn_lines(runs: dict[str, Path], tmp_path: Path) -> None:
    path = runs["killed"]
    assert opened(path).status == "stopped"
    whole, logged_last = page([opened(path)], "killed"), int(logged(path).current_steps.max())
    decided_last = ledger(path)[-1]["step"]
    for file in (path / "trainer_log.jsonl", path / "dataflex" / "ledger.jsonl"):
        with file.open("a") as torn:
            torn.write('{"step": 9, "current_steps": 9, "loss"')
    run = opened(path)
    assert run.log.step == logged_last >= 5 and run.step == max(logged_last, decided_last)
    assert len(domains_table(run).rows) == 3  # type: ignore[union-attr]
    assert len(page([run], "killed")) == pytest.approx(len(whole), abs=100)


def test_what_was_logged_twice_counts_once(tmp_path: Path) -> None:
    """Killed after step 5, resumed from step 3: what the first run logged after it is gone, its time is not."""
    before = [(1, 2.0, "0:00:10"), (2, 1.9, "0:00:20"), (4, 9.0, "0:00:40"), (5, 9.0, "0:00:50")]
    lines = [*before, (4, 1.7, "0:00:12"), (6, 1.5, "1 day, 0:00:00")]
    text = [{"current_steps": s, "total_steps": 6, "loss": v, "elapsed_time": t} for s, v, t in lines]
    text.append({"current_steps": 6, "total_steps": 6, "elapsed_time": "1 day, 0:00:01"})
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))
    log = Log(tmp_path / "trainer_log.jsonl")
    steps, values = log.series("loss")
    assert steps.tolist() == [1, 2, 4, 6] and values.tolist() == [2.0, 1.9, 1.7, 1.5]
    assert log.seconds == 50 + 86401 and (log.step, log.total_steps) == (6, 6)


def test_a_run_on_streams_and_one_without_a_block(runs: dict[str, Path]) -> None:
    stream, plain = opened(runs["stream"]), opened(runs["plain"])
    log = logged(runs["stream"])
    table = cells(domains_table(stream))
    assert table["code"]["rows"] == "-" and "epochs" not in table["code"]
    share = log["dataflex/realized/code"].mean()
    assert table["code"]["served"] == f"{100 * share:.0f} %"
    assert domains_table(plain) is None and plain.status == "finished"
    results = json.loads((runs["plain"] / "all_results.json").read_text())
    found = final_losses([plain, plain])[plain.name]
    assert found == {f"{d}_heldout": results[f"eval_{d}_heldout_loss"] for d in ("code", "docs", "arithmetic")}
    for run in (stream, plain):
        assert len(page([run], "run")) > 4_000_000


def test_a_selection_before_training(base: Config, tmp_path: Path) -> None:
    import yaml
    from harness import Run as Started

    block = {"select": {"name": "token_length"}, "offline": {"budget": 20}}
    config = {k: v for k, v in base.items() if k not in ("max_steps", "logging_steps", "save_strategy")}
    file = tmp_path / "select.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "out"), "dataflex": block}))
    Started(["select", str(file)], tmp_path / "log", 1, [], {}).wait().ok  # noqa: B018
    (selection,) = opened(tmp_path / "out").selections
    rows = pd.read_parquet(selection.path)
    assert selection.summary.selected == {
        d: int((rows[rows.dataset == d].times > 0).sum()) for d in ("code", "docs", "arithmetic")
    }
    assert rows.sort_values("rank").row.tolist()[:3] == rows[rows["rank"] <= 3].sort_values("rank").row.tolist()
    assert rows["rank"].notna().sum() == 20 and selection.texts
    assert "token_length" in command("report", str(tmp_path / "out")).stdout


# -- what a page may hold -------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\x1b[2J\u202egnp.exe\x00 ]]> <!-- &amp;"


def test_texts_of_the_data_are_shown_and_do_nothing(tmp_path: Path) -> None:
    from dataflex.data.texts import RowText

    domains = Domains((f"<b>{EVIL}</b>", "b"), (3, 3))
    files = RunFiles(tmp_path, domains, writes=True, texts=lambda ids: [RowText(EVIL, f"{EVIL}{i}") for i in ids])
    files.start({"dataflex": {"select": {"name": EVIL}}, "domains": {name: {"rows": 3} for name in domains.names}})
    relative = files.write_selection(1, SelectionRecord(domains, [np.array([1, 4])], np.arange(6.0)))
    files.record({"step": 1, "component": f"select:{EVIL}", "decided": {"file": relative}, "seconds": 1.0})
    run = opened(tmp_path)
    text = page([run], EVIL)
    outside = re.sub(r"<script>(?!alert).*?</script>", "", text, flags=re.S)
    outside = re.sub(r'<script type="application/json".*?</script>', "", outside, flags=re.S)
    assert "<script" not in outside and "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u001b[2J\\u202egnp.exe" in outside
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", outside)
    for figure in figures(text):
        assert all("<" not in str(trace.get("name")) for trace in figure["data"])
    shown = command("report", str(tmp_path)).stdout + command("show", str(tmp_path)).stdout
    assert "\x1b[2J" not in shown and "\u202e" not in shown and "\\u202e" in shown


def test_hidden_characters_are_shown() -> None:
    assert visible("a\tb\nc é 漢字 \U0001f600") == "a\tb\nc é 漢字 \U0001f600"
    assert visible("\u202e\x07\ufeff\u200b") == "\\u202e\\u0007\\ufeff\\u200b"


# -- the commands -------------------------------------------------------------------------------------------------------


def command(*arguments: str, columns: int = 160) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "dataflex", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": str(columns)},
    )  # fmt: skip


def test_report_in_a_terminal_and_as_a_page(runs: dict[str, Path], tmp_path: Path) -> None:
    for columns in (80, 160):
        found = command("report", *(str(runs[name]) for name in ("all", "select", "plain")), columns=columns)
        assert found.returncode == 0, found.stderr
        assert max(map(len, found.stdout.splitlines())) <= columns
        assert all(word in found.stdout for word in ("Domains", "Selections", "Weights", "Settings that differ"))
    assert all(words in found.stdout for words in ("select loss, mix odm, weight loss", "mean of domains"))
    for columns in (80, 160):
        _nothing_is_cut(opened(runs["all"]), columns)
    file = tmp_path / "report.html"
    assert command("report", str(runs["all"]), "--html", str(file)).returncode == 0
    assert command("report", str(runs["all"]), "--html", str(file)).returncode == 0  # its own page may be replaced
    assert file.read_text().startswith("<!doctype html>")
    file.write_text("mine")
    refused = command("report", str(runs["all"]), "--html", str(file))
    assert refused.returncode == 2 and "is no report" in refused.stderr and file.read_text() == "mine"
    missing = command("report", str(tmp_path))
    assert missing.returncode == 2 and "no run and no selection" in missing.stderr and missing.stderr.count("\n") == 1


def _nothing_is_cut(run: Run, columns: int) -> None:
    """Every figure of the tables is in the terminal whole, beside the name of its row."""
    for table in tables_of(run):
        console = Console(width=columns, file=io.StringIO(), highlight=False)
        show_table(table, console)
        shown = console.file.getvalue().splitlines()
        for row in table.rows:
            own = " ".join(line for line in shown if line.startswith(row[0]))
            figures = [cell for name, cell in zip(table.columns, row) if name not in table.texts and cell != "-"]
            assert all(figure in own for figure in figures), (row, shown)


def test_texts_follow_a_narrow_table() -> None:
    table = Table(
        "Rows", ("row", "score", "margin", "text"), [("a:1", "0.5", "-", "y" * 300)], "note", frozenset({"text"})
    )
    narrow, wide = (Console(width=columns, file=io.StringIO(), highlight=False) for columns in (80, 160))
    show_table(table, narrow)
    lines = narrow.file.getvalue().splitlines()
    assert [line.split() for line in lines[:3]] == [["Rows"], ["row", "score"], ["a:1", "0.5"]]
    assert lines[4] == f"a:1  {'y' * 74}…" and lines[5] == "note"
    show_table(table, wide)
    assert wide.file.getvalue().count("y") == 300 and "margin" not in wide.file.getvalue()


def test_show_rows_and_the_life_of_one(runs: dict[str, Path]) -> None:
    path = runs["select"]
    last = pd.read_parquet(opened(path).selections[-1].path)
    top = json.loads(command("show", str(path), "--top", "3", "--domain", "docs", "--json").stdout)
    expected = last[last.domain == "docs"].sort_values("score", ascending=False, kind="stable").head(3)
    assert [row["sample_id"] for row in top] == expected.sample_id.tolist()
    assert [row["score"] for row in top] == expected.score.tolist()
    assert [row["place"] for row in top] == [int((last.score > s).sum()) + 1 for s in expected.score]
    assert [row["selected"] for row in top] == expected.selected.tolist()
    first = json.loads(command("show", str(path), "--first", "4", "--json").stdout)
    assert [row["rank"] for row in first] == [1, 2, 3, 4]
    row = top[0]
    life = json.loads(command("show", str(path), "--row", f"docs:{row['row']}", "--json").stdout)
    steps = [int(f.stem.removeprefix("step_")) for f in (path / "dataflex" / "selections").glob("*.parquet")]
    assert [found["step"] for found in life["selections"]] == sorted(steps)
    for found in life["selections"]:
        rows = pd.read_parquet(path / "dataflex" / "selections" / f"step_{found['step']}.parquet").set_index(
            "sample_id"
        )
        assert found["score"] == rows.score[row["sample_id"]] and found["selected"] == rows.selected[row["sample_id"]]
    seen = pd.read_parquet(path / "dataflex" / "exposure.parquet").set_index("sample_id")
    known = row["sample_id"] in seen.index
    assert (life["exposure"] or {}).get("times_seen") == (seen.times_seen[row["sample_id"]] if known else None)
    text = command("show", str(path), "--row", f"docs:{row['row']}").stdout
    assert f"docs:{row['row']}" in text and ("Trained on" in text or "Not trained on" in text)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--step", "5"], "--step: there is no selection at step 5; there are "),
        (["--domain", "doc"], "--domain: unknown data set 'doc'; did you mean 'docs'?"),
        (["--row", "docs"], "--row: 'docs' is not of the form NAME:ROW"),
        (["--row", "docs:99999"], "--row: the selections of this run do not know row 99999 of docs"),
        (["--top", "0"], "--top must be at least 1, not 0"),
    ],
)
def test_show_names_what_is_wrong(runs: dict[str, Path], arguments: list[str], line: str) -> None:
    found = command("show", str(runs["select"]), *arguments)
    assert found.returncode == 2 and line in found.stderr and found.stderr.count("\n") == 1, found.stderr


def test_following_a_run_ends_with_it(base: Config, tmp_path: Path) -> None:
    import time

    run = start({**base, "max_steps": 40, "dataflex": {"mix": {"name": "static"}}}, tmp_path / "run")
    for _ in range(600):
        if (tmp_path / "run" / "trainer_log.jsonl").is_file():
            break
        time.sleep(0.1)
    shown = command("report", str(tmp_path / "run"), "--follow")
    run.wait().ok  # noqa: B018
    assert shown.returncode == 0 and "finished" in shown.stdout, shown.stderr
    assert opened(tmp_path / "run").status == "finished"


def test_following_misses_no_change(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What has changed since the files were read is seen without waiting, and so is the end of a process that says nothing."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    run = opened(runs["plain"])
    _wait([run], [[(0, 0)] * 3], [])
    _wait([run], [_stamps(run)], [run])


def test_the_runs_of_doremi(runs: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    (tmp_path / "doremi.json").write_text("{}")
    for step, name in (("reference", "stream"), ("proxy", "all")):
        shutil.copytree(runs[name], tmp_path / step)
    assert [run.name for run in open_runs([tmp_path])] == [f"{tmp_path.name}/reference", f"{tmp_path.name}/proxy"]


def test_train_goes_on_saying_what_it_selected_after_a_kill(base: Config, tmp_path: Path) -> None:
    """Files of selections that a resumed run makes again are those of before, texts included."""
    config = {**base, **SAVED, "dataflex": {"select": {"name": "loss", "interval": 3, "focus": "high"}}}
    whole, killed = train_all(
        start(config, tmp_path / "whole"), start(config, tmp_path / "killed", hooks=["kill_after:7"])
    )
    assert whole.ok and killed.status == [-9]
    train(config, tmp_path / "killed").ok  # noqa: B018
    names = sorted(f.name for f in (tmp_path / "whole" / "dataflex" / "selections").iterdir())
    assert names == sorted(f.name for f in (tmp_path / "killed" / "dataflex" / "selections").iterdir())
    assert {name.rpartition(".")[2] for name in names} == {"parquet", "jsonl"}
    for name in names:
        a, b = (tmp_path / run / "dataflex" / "selections" / name for run in ("whole", "killed"))
        assert a.read_bytes() == b.read_bytes(), name
