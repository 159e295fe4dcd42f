"""A report opens alone, says who used the fewest bytes, trusts no text of a run, and never costs a run its end."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.cli import main
from disttrain.component import UserError
from disttrain.recording.folder import RunFolder
from disttrain.recording.recorder import Recorder
from disttrain.recording.report import read_run, read_runs, render
from disttrain.recording.report.curves import MOST_POINTS, SENT, STEPS, axes_of, every_nth, thinned
from disttrain.recording.report.split import split_of
from disttrain.recording.report.tables import differences, summary_table


def records(wire_bytes, loss=2.0, steps=30):
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "loss": loss + 1 / step,
            "seconds": 0.5 * step,
            "wire_bytes": wire_bytes * step,
            "exposed_seconds": 0.1 * step,
            "optimizer_seconds": 0.05 * step,
            "evaluation_seconds": 0.2,
            "checkpoint_seconds": 0.1,
            "gradient_norm": 1 / step,
        }
        | ({"validation_loss": loss + 2 / step} if step % 10 == 0 else {})
        for step in range(1, steps + 1)
    ]


def make_run(path, records, config="strategy: {name: ddp}\n", **summary):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "config.yaml").write_text(config)
    last = records[-1] if records else {}
    whole = {"status": "finished", "steps": last.get("step"), "ddp_wire_bytes": 30_000, "workers": 2, "unit": "byte"}
    copied = {key: last.get(key) for key in ("wire_bytes", "validation_loss", "seconds", "tokens", "exposed_seconds")}
    (path / "summary.json").write_text(json.dumps(whole | copied | summary))
    return path


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return [
        make_run(folder / "dense", records(1000)),
        make_run(folder / "thin", records(10, 2.5), "strategy: {name: compressed, ratio: 0.01}\n"),
        make_run(folder / "between", records(400, 2.2), "strategy: {name: co2}\n"),
    ]


@pytest.fixture(scope="module")
def page_of_three(three):
    return render(read_runs(three))


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_the_run_with_the_fewest_bytes_is_named_first_and_marked(three):
    runs = read_runs(three)
    rows, headlines = summary_table(runs)
    fewest = next(each for each in headlines if each.title == "Fewest bytes")
    assert fewest.value == "thin"
    assert "1.0% of torch DDP’s" in fewest.more
    marked = {run.name: {cell.title for cell in row if cell.best} for run, row in zip(runs, rows, strict=True)}
    assert "Sent per worker" in marked["thin"] - marked["dense"] - marked["between"]
    assert "Validation loss" in marked["dense"]


def test_losses_of_different_tasks_are_not_ranked(tmp_path):
    paths = [make_run(tmp_path / name, records(10), f"data: {{name: {name}}}\n") for name in ("digits", "text")]
    rows, headlines = summary_table(read_runs(paths))
    assert not [cell for row in rows for cell in row if cell.best and "loss" in cell.title]
    assert "Lowest validation loss" not in {each.title for each in headlines}


def test_a_page_asks_for_nothing_from_elsewhere_and_runs_nothing(page_of_three):
    page = Page(page_of_three)
    assert page.tags.count("svg") >= 6
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    assert all(value.startswith("#") for value in addresses)
    assert not re.search(r"url\((?!#)", page_of_three)


def test_axes_are_labelled_with_units(page_of_three):
    words = " ".join(Page(page_of_three).words)
    for label in (
        "loss (nats per byte)",
        "tokens, all workers (millions)",
        "time (s)",
        "sent per worker (MB)",
        "time per step (ms)",
    ):
        assert label in words
    assert "exposed communication" in words


def test_what_differs_in_the_configs_is_shown_and_nothing_else(three):
    assert differences(read_runs(three)) == [
        ("strategy.name", ["ddp", "compressed", "co2"]),
        ("strategy.ratio", ["–", "0.01", "–"]),
    ]


def test_four_long_runs_fit_in_three_megabytes(tmp_path):
    paths = [make_run(tmp_path / f"run{n}", records(10 + n, steps=3_000)) for n in range(4)]
    assert len(render(read_runs(paths))) < 1_500_000


def test_the_time_split_leaves_out_validation_and_checkpoints(three):
    split = split_of(read_run(three[0]))
    assert split == pytest.approx({"compute": (15 - 3 - 1.5 - 0.3) / 30, "optimizer": 0.05, "exposed communication": 0.1})


def test_of_a_run_whose_waiting_is_not_known_there_is_no_split(tmp_path):
    without = [{key: value for key, value in record.items() if key != "exposed_seconds"} for record in records(10)]
    assert split_of(read_run(make_run(tmp_path / "run", without))) is None


def test_a_federations_rounds_are_called_so_and_its_algorithm_is_named(tmp_path):
    rounds = [{"step": n, "loss": 1 / n, "seconds": n, "bytes_up": 100 * n, "clients_used": n} for n in range(1, 9)]
    config = "strategy: {name: ddp}\nfederated: {algorithm: {name: scallion}}\n"
    run = read_run(make_run(tmp_path / "federation", rounds, config))
    words = " ".join(Page(render([run])).words)
    assert "scallion" in words
    assert "Against rounds" in words
    assert "sent by all clients (MB)" in words
    assert {cell.title: cell.text for cell in summary_table([run])[0][0]}["Strategy"] == "scallion"


EVIL = "<script>alert(1)</script>$x_$ & \"'"


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path):
    config = json.dumps({"model": {"name": EVIL}, EVIL: [EVIL]})
    evil = records(10)
    for number, record in enumerate(evil):
        record[EVIL] = float(number)
    folder = make_run(tmp_path / EVIL.replace("/", ""), evil, config, strategy=EVIL, unit=EVIL, status=EVIL)
    other = make_run(tmp_path / "other", records(20))
    page = Page(render(read_runs([folder, other])))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert EVIL in page.words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = st.sampled_from(sorted(set(records(1)[-1]) | {"validation_loss", "validation_accuracy", "bytes_up", "virtual_seconds"}))


@settings(max_examples=5)
@given(
    lines=st.lists(JSON | st.dictionaries(KNOWN | st.text(max_size=8), JSON, max_size=8), min_size=1, max_size=6),
    summary=JSON | st.dictionaries(st.sampled_from(["wire_bytes", "unit", "strategy", "status"]), JSON),
    config=JSON,
)
def test_whatever_stands_in_the_files_a_page_or_one_message_comes_of_it(tmp_path_factory, lines, summary, config):
    path = tmp_path_factory.mktemp("run")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "config.yaml").write_text(json.dumps(config))
    if not any(isinstance(line, dict) and _is_finite(line.get("step")) for line in lines):
        with pytest.raises(UserError, match="no record of a step"):
            read_run(path)
        return
    assert "script" not in Page(render([read_run(path)])).tags


def _is_finite(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e3, 1e3)), max_size=3000))
def test_thinning_keeps_the_end_and_the_mean_within_the_values(points):
    for few in (thinned(points), every_nth(points)):
        assert len(few) <= MOST_POINTS + 1
        assert [x for x, _ in few[-1:]] == [x for x, _ in points[-1:]]
    assert set(every_nth(points)) <= set(points)
    values = [y for _, y in points]
    assert all(min(values) - 1e-6 <= y <= max(values) + 1e-6 for _, y in thinned(points))


def test_axes_that_no_run_has_anything_on_are_left_out(tmp_path):
    run = read_run(make_run(tmp_path / "local", records(0)))
    assert STEPS in axes_of([run])
    assert SENT not in axes_of([run])


@pytest.mark.parametrize("arguments", [["nowhere"], ["empty"], ["run", "run"], []])
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", records(10))
    make_run(tmp_path / "empty", [])
    with pytest.raises(SystemExit) as stopped:
        main(["report", *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert (arguments or ["RUN"])[0] in said


def test_the_command_says_where_the_page_is(tmp_path, monkeypatch, capsys):
    runs = [make_run(tmp_path / name, records(10, steps=3)) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, runs)])
    assert stopped.value.code == 0
    assert (tmp_path / capsys.readouterr().out.strip()).read_text().startswith("<!doctype html>")


def test_a_report_that_fails_is_warned_of_and_the_run_ends_well(tmp_path, monkeypatch):
    said = []
    display = SimpleNamespace(close=lambda: None, say=said.append, step=lambda *_: None)
    make_run(tmp_path / "run", records(10))
    recorder = Recorder(RunFolder(tmp_path / "run"), display)

    def fail(*_):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr("disttrain.recording.plot.write_report", fail)
    summary = {"status": "finished", "steps": 30, "tokens": 0, "seconds": 1.0, "validation_loss": None, "wire_bytes": 0}
    recorder.finish(summary | {"ddp_wire_bytes": 0, "exposed_seconds": None}, "byte")
    assert [line for line in said if "warning" in line] == ["warning: report.html was not drawn (RuntimeError: no font)"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unit"] == "byte"
