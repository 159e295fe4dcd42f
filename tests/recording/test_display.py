"""What a person reads during and after a run."""

from disttrain.recording.progress import Display, progress_line, readable_bytes, readable_seconds
from disttrain.recording.recorder import summary_lines

RECORD = {"step": 50, "loss": 1.25, "validation_loss": 1.5, "tokens_per_second": 12345.6, "wire_bytes": 2_500_000}
SUMMARY = {
    "status": "finished", "steps": 500, "tokens": 1_024_000, "validation_loss": 1.3065, "seconds": 100.0,
    "wire_bytes": 500_000_000, "ddp_wire_bytes": 1_000_000_000, "exposed_seconds": 8.5,
}  # fmt: skip


def test_a_line_says_step_share_loss_speed_bytes_and_time_left():
    line = progress_line(RECORD | {"mfu": 0.4321}, 200, 65.0)
    assert line == "step 50/200 (25%)  loss 1.2500  validation 1.5000  12,346 tokens/s  MFU 43.2%  sent 2.5 MB/worker  1m05s left"


def test_what_is_not_known_is_left_out():
    line = progress_line({"step": 1, "loss": float("nan"), "tokens_per_second": 0.0, "wire_bytes": 0}, 4)
    assert line == "step 1/4 (25%)  loss not finite  sent 0 B/worker"


def test_the_end_says_loss_speed_bytes_saved_and_waiting():
    text = "\n".join(summary_lines(SUMMARY, "byte"))
    for words in ("500 steps", "1.3065 nats per byte", "10,240 tokens/s", "500.0 MB, 50.0% less than torch DDP's 1.0 GB", "8.5%"):
        assert words in text


def test_samples_are_not_called_tokens_and_accuracy_is_shown():
    line = progress_line(RECORD | {"validation_accuracy": 0.931}, 200, unit="sample")
    assert "validation 1.5000  accuracy 93.1%  12,346 samples/s" in line
    text = "\n".join(summary_lines(SUMMARY | {"validation_accuracy": 0.931}, "sample"))
    for words in ("1,024,000 samples in", "nats per sample", "accuracy         93.1% in validation", "10,240 samples/s"):
        assert words in text


def test_a_gpus_unknown_waiting_is_not_made_up():
    assert "waiting" not in "\n".join(summary_lines(SUMMARY | {"exposed_seconds": None}, "token"))


def test_what_was_on_the_screen_is_in_the_log(tmp_path, capsys):
    display = Display(200, speaks=True, log=tmp_path / "console.log")
    display.say("hello [not markup]")
    display.table(("a", "b"), [("1", "2")])
    display.step(RECORD, 65.0)
    Display(200, speaks=False, log=tmp_path / "console.log").say("silent")
    text = (tmp_path / "console.log").read_text()
    assert text.splitlines() == ["hello [not markup]", "a  b", "1  2", progress_line(RECORD, 200, 65.0)]
    assert "hello [not markup]" in capsys.readouterr().out


def test_readable_numbers():
    assert [readable_bytes(n) for n in (0, 999, 1000, 1_500_000, 2e15)] == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2000.0 TB"]
    assert [readable_seconds(n) for n in (0.4, 59.6, 3725)] == ["0s", "1m00s", "1h02m"]
