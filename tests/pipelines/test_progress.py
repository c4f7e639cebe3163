import io

from rich.console import Console

from pipelines.progress import Bar, Reporter, read


def shown(folder) -> str:
    """What the bar shows at its end, on a wide terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    with Bar(str(folder), console):
        pass
    return console.file.getvalue()


def test_the_counts_of_all_processes_are_summed(tmp_path):
    for _ in range(2):
        reporter = Reporter(str(tmp_path))
        reporter.add("wanted", 4)
        reporter.add("made")
        reporter.doing("sampling")
    counts, doing, errors = read(str(tmp_path))
    assert counts == {"wanted": 8, "made": 2} and doing == ["sampling"] * 2 and errors == []


def test_what_takes_the_time_is_told_at_once_and_no_longer_than_it_lasts(tmp_path):
    reporter = Reporter(str(tmp_path))
    reporter.add("wanted", 8)
    reporter.doing("compiling euler 64x64")
    text = shown(tmp_path)
    assert "compiling euler 64x64" in text and "0/8" in text
    reporter.add("made", 3)
    reporter.doing("")
    text = shown(tmp_path)
    assert "sampling" in text and "3/8" in text and "compiling" not in text


def test_before_there_are_jobs_the_rows_read_are_shown(tmp_path):
    reporter = Reporter(str(tmp_path))
    reporter.add("rows", 12)
    reporter.doing("")
    assert "reading prompts, 12 rows" in shown(tmp_path)


def test_brackets_of_a_path_are_shown_as_they_are(tmp_path):
    Reporter(str(tmp_path)).doing("loading models/[/bold] [red]")
    assert "loading models/[/bold] [red]" in shown(tmp_path)


def test_what_a_path_would_do_to_the_terminal_is_shown_as_an_escape(tmp_path):
    Reporter(str(tmp_path)).doing("loading \x1b]0;title\x07")
    assert "loading \\x1b]0;title\\x07" in shown(tmp_path)


def test_what_stops_a_run_is_left_for_who_started_it(tmp_path):
    Reporter(str(tmp_path)).failed("/out/x: no room left")
    assert read(str(tmp_path)).errors == ["/out/x: no room left"]


def test_a_worker_elsewhere_tells_nothing_and_goes_on(tmp_path):
    reporter = Reporter(str(tmp_path / "gone"))
    reporter.add("made")
    reporter.doing("sampling")
    assert list(tmp_path.iterdir()) == []


def test_half_a_file_is_passed_over(tmp_path):
    (tmp_path / "1.json").write_text('{"counts": {"ma')
    assert read(str(tmp_path)) == ({}, [], [])
