"""A script of events is read in the order of its times, or refused with all its mistakes at once."""

import pytest

from disttrain.component import UserError
from disttrain.emulation.events import ACTIONS, Event, as_record, load_events


def written(folder, text):
    path = folder / "events.yaml"
    path.write_text(text)
    return str(path)


def test_events_come_in_the_order_of_their_times(tmp_path):
    script = "- {at: 1min, kill: 1}\n- {at: 5s, bandwidth: '100mbit,10mbit'}\n- {at: 500ms, bandwidth: 1gbit/1mbit, worker: 1}\n"
    events = load_events(written(tmp_path, script), 2)
    assert [str(event) for event in events] == [
        "bandwidth 1gbit/1mbit for worker 1", "bandwidth 100mbit,10mbit", "kill worker 1",
    ]  # fmt: skip
    assert as_record(events[2], 60.0123) == {"at": 60.0, "seconds": 60.012, "kill": 1}


@pytest.mark.parametrize("action", ACTIONS[1:])
def test_every_action_names_its_worker(tmp_path, action):
    (event,) = load_events(written(tmp_path, f"- {{at: 0s, {action}: 1}}"), 2)
    assert (event.action, getattr(event, action)) == (action, 1)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("{at: 1s, cut: 2}", "event 2: cut: must be one of the workers 0 to 1 (got 2)"),
        ("{at: 1s, cut: -1}", "event 2: cut: must be at least 0 (got -1)"),
        ("{at: -1s, cut: 1}", "event 2: at: must be a duration such as 50ms"),
        ("{cut: 1}", "event 2: at: required, but not given"),
        ("{at: 1s, cutt: 1}", 'event 2: cutt: unknown key; did you mean "cut"? allowed: at, bandwidth, cut, freeze'),
        ("{at: 1s}", "event 2: must have one of bandwidth, cut, restore, freeze, thaw, kill, restart (got none)"),
        ("{at: 1s, cut: 1, kill: 1}", "event 2: must have one of bandwidth, cut, restore, freeze, thaw, kill, restart"),
        ("{at: 1s, cut: 1, worker: 1}", "event 2: worker goes with bandwidth only"),
        ("{at: 1s, bandwidth: 10mb}", "event 2: bandwidth: must be a bit rate such as 100mbit"),
        ("{at: 1s, bandwidth: '1mbit,1mbit,1mbit'}", "event 2: bandwidth: must be one bandwidth for all"),
        ("{at: 1s, bandwidth: '1mbit,1mbit', worker: 0}", "event 2: bandwidth: must be a bit rate"),
        ("7", "event 2: must be a section of keys and values"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_by_line_event_key_and_what_is_allowed(tmp_path, event, words):
    path = written(tmp_path, f"- {{at: 1s, cut: 1}}\n- {event}\n")
    with pytest.raises(UserError) as error:
        load_events(path, 2)
    assert f"{path}:2: {words}" in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    path = written(tmp_path, "- {at: 1s, cut: 5}\n- {at: soon, kill: 0}\n- {at: 1s, at: 2s, kill: 0}\n")
    with pytest.raises(UserError) as error:
        load_events(path, 2)
    assert sorted(line.split(": ")[1] for line in str(error.value).splitlines()) == ["event 1", "event 2", "event 3"]


@pytest.mark.parametrize(
    ("text", "words"), [("cut: 1", "must be a list of events"), ("", "must be a list"), ("[", "not valid YAML")]
)
def test_what_is_no_list_is_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        load_events(written(tmp_path, text), 2)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match="--events /nowhere: cannot be read: No such file"):
        load_events("/nowhere", 2)


def test_an_event_survives_the_way_inside():
    event = Event(at=1.5, bandwidth="1mbit", worker=3)
    assert Event.model_validate_json(event.model_dump_json()) == event
