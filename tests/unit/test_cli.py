# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: help, usage errors, options, and what becomes of every way out. No device is touched."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft import __version__, cli
from dmsoft.cli import VERBS, dmsoft, run
from dmsoft.cli.consent import question
from dmsoft.cli.options import DurationType, SizeType, secondaries
from dmsoft.errors import BusyError, DeviceError, DmsoftError, UsageError
from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.mirror.create import SecondarySpec
from dmsoft.mirror.progress import Planned
from dmsoft.report.output import emit
from dmsoft.report.progress import reporter
from dmsoft.units import KIB

Capture = pytest.CaptureFixture[str]
CONTEXT = click.Context(dmsoft, info_name="dmsoft")
COMMANDS = {name: command for name in VERBS if (command := dmsoft.get_command(CONTEXT, name)) is not None}


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here comes after the question who asks, which `test_not_root` has in a process of its own."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_every_verb_is_there() -> None:
    assert list(COMMANDS) == list(VERBS) == dmsoft.list_commands(CONTEXT)
    assert dmsoft.get_command(CONTEXT, "options") is None, "a module of the package that is no verb"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help(verb: str | None, flag: str, capsys: Capture) -> None:
    assert run([flag] if verb is None else [verb, flag]) == 0
    out = capsys.readouterr().out
    assert f"Usage: dmsoft {verb or ''}" in out
    assert max(map(len, out.splitlines())) <= 100
    names = VERBS if verb is None else [name for p in COMMANDS[verb].params for name in p.opts if name.startswith("--")]
    assert all(name in out for name in names)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_speaks_json_and_says_what_it_does(verb: str) -> None:
    command = COMMANDS[verb]
    assert "--json" in {name for param in command.params for name in param.opts}
    assert command.help and command.help.splitlines()[0].rstrip().endswith(".")
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{verb} {param.opts}"


@pytest.mark.parametrize("verb", ["create", "add", "remove", "start", "stop", "destroy", "resync"])
def test_verbs_that_change_something_can_be_tried(verb: str) -> None:
    assert "--dry-run" in {name for param in COMMANDS[verb].params for name in param.opts}


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-verb"],
        ["--no-such-option"],
        *([verb, "--no-such-option"] for verb in VERBS),
        ["create"],
        ["create", "m"],
        ["create", "m", "--primary", "/dev/x"],
        ["create", "m", "--secondary", "/dev/x"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "more"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--mode", "raid0"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--block-size", "1.5M"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--block-size", "5000"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--interval", "soon"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--interval", "1000000w"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--via", "carrier-pigeon"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "/dev/y", "--via", "other=direct"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "a-b=/dev/y"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "lower=/dev/y"],
        ["create", "m", "--primary", "/dev/x", "--secondary", "a=/dev/y", "--secondary", "a=/dev/z"],
        ["create", "a/b", "--primary", "/dev/x", "--secondary", "/dev/y"],
        ["add", "m"],
        ["remove", "m"],
        ["start"],
        ["stop"],
        ["destroy"],
        ["stale", "m"],
        ["resync"],
        ["resync", "m", "--max-stall", "long"],
        ["examine"],
        ["recover"],
        ["status", "m", "n"],
        ["explain", "busy", "usage"],
        ["devices", "extra"],
    ],
)
def test_usage_errors(words: list[str], capsys: Capture) -> None:
    assert run(words) == 2, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and "\nHint: " in err
    assert run([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert out == "" and error["code"] == "usage" and error["message"] and error["hint"]


def test_discards_are_refused(capsys: Capture) -> None:
    words = ["create", "m", "--primary", "/dev/null", "--secondary", "/dev/zero", "--allow-discards"]
    for more, form in (([], "Hint: Leave --allow-discards out"), (["--json", "--yes"], '"code": "discards"')):
        assert run([*words, *more]) == 2
        out, err = capsys.readouterr()
        assert out == "" and form in err and "only the first block" in err
    assert run(["explain", "discards"]) == 0
    assert "Exit status 2" in (said := capsys.readouterr().out) and "5.10 to 7.2" in said, said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("verb", VERBS)
def test_not_root(verb: str) -> None:
    words = {"create": ["m"], "add": ["m", "/dev/x"], "remove": ["m", "s1"], "stale": ["m", "s1"]}.get(verb, ["m"])
    if verb in ("explain", "devices"):
        words = []
    program = "import os, sys; from dmsoft.cli import run; sys.exit(run(sys.argv[1:]))"
    # The checkout may lie in root's own home.
    nobody = ["setpriv", "--reuid=65534", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run([*nobody, sys.executable, "-c", program, verb, *words], capture_output=True, check=False)
    assert done.returncode == (0 if verb == "explain" else 3), done.stderr
    helped = subprocess.run([*nobody, sys.executable, "-c", program, verb, "--help"], capture_output=True, check=False)
    assert helped.returncode == 0 and b"Usage:" in helped.stdout


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have `dmsoft status` do something else."""

    def replace(action: Callable[[], object]) -> None:
        monkeypatch.setattr(COMMANDS["status"], "callback", lambda **_: action())

    return replace


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


Status = Callable[[Callable[[], object]], None]


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "no"), RuntimeError("can't start new thread")], ids=repr
)
def test_too_little_memory_is_said_to_be_that(error: Exception, status: Status, capsys: Capture) -> None:
    status(raising(error))
    assert run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "out-of-memory"


def test_an_error_is_two_lines_and_its_exit_code(status: Status, capsys: Capture) -> None:
    status(raising(BusyError("The mirror is busy.", hint="Wait.")))
    assert run(["status"]) == 10
    assert capsys.readouterr() == ("", "Error: The mirror is busy.\nHint: Wait.\n")
    assert run(["status", "--json"]) == 10
    out, err = capsys.readouterr()
    assert out == "" and json.loads(err) == {
        "error": {"code": "busy", "message": "The mirror is busy.", "hint": "Wait."}
    }


def test_an_error_without_a_hint_says_where_one_is(status: Status, capsys: Capture) -> None:
    status(raising(DmsoftError("It broke.")))
    assert run(["status"]) == 1
    assert capsys.readouterr().err == "Error: It broke.\nHint: `dmsoft explain unexpected` says what to do.\n"


def test_what_nobody_expected(status: Status, capsys: Capture) -> None:
    status(raising(ZeroDivisionError("division by zero")))
    assert run(["status"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in err and "--debug" in err and "Traceback" not in err
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "status"])


def test_a_no_changes_nothing_and_says_so(status: Status, capsys: Capture) -> None:
    status(raising(click.Abort()))
    assert run(["status"]) == 130
    assert capsys.readouterr().err == "Cancelled; nothing was changed.\n"


def test_an_interrupt_in_the_middle_does_not_claim_that_nothing_was_changed(status: Status, capsys: Capture) -> None:
    status(raising(KeyboardInterrupt()))
    assert run(["status"]) == 130
    err = capsys.readouterr().err
    assert "Interrupted" in err and "nothing was changed" not in err and "dmsoft status" in err


def test_a_reader_that_went_away() -> None:
    program = "import os, sys\nfrom dmsoft import cli\nfrom dmsoft.cli import explain\nsys.exit(cli.run(['explain']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 1 and b"Traceback" not in done.stderr


def one(words: list[str], vias: tuple[str, ...] = (), **changes: object) -> tuple[SecondarySpec, ...]:
    return secondaries(words, vias, changes.get("mode", "write-behind"), 300.0, None)


def test_labels_are_given_or_counted() -> None:
    found = one(["/dev/a", "s1=/dev/b", "/dev/c", "off.site=/dev/disk/by-id/x=y"])
    assert [(each.label, each.device) for each in found] == [
        ("s2", "/dev/a"),
        ("s1", "/dev/b"),
        ("s3", "/dev/c"),
        ("off.site", "/dev/disk/by-id/x=y"),
    ]


def test_a_path_with_an_equals_sign_is_no_label() -> None:
    assert [each.device for each in one(["/dev/disk/by-id/a=b", "./c=d"])] == ["/dev/disk/by-id/a=b", "./c=d"]


def test_an_empty_label_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot label"):
        one(["=/dev/a"])


def test_vias_by_label_and_for_all() -> None:
    found = one(["a=/dev/a", "b=/dev/b", "c=/dev/c"], ("a=writecache:/dev/fast", "delay:20", "c=direct"))
    assert [(each.cache, each.delay_ms) for each in found] == [("/dev/fast", None), (None, 20), (None, None)]


@pytest.mark.parametrize("way", ["writecache:/dev/disk/by-id/a=b", "s1=writecache:/dev/disk/by-id/a=b"])
def test_a_cache_whose_path_has_an_equals_sign(way: str) -> None:
    assert one(["/dev/a"], (way,))[0].cache == "/dev/disk/by-id/a=b"


def test_one_cache_for_two_secondaries_has_to_say_for_which() -> None:
    with pytest.raises(UsageError, match="serves one"):
        one(["/dev/a", "/dev/b"], ("writecache:/dev/fast",))
    assert one(["/dev/a"], ("writecache:/dev/fast",))[0].cache == "/dev/fast"


WRONG_DELAYS = ["delay", "delay:", "delay:-1", "delay:1.5", "delay:x", "delay:3600001", "delay:\u0661"]


@pytest.mark.parametrize("way", ["", "direct:", "direct:x", "writecache", "writecache:", "raid:5", *WRONG_DELAYS])
def test_ways_that_lead_nowhere(way: str) -> None:
    with pytest.raises(UsageError, match="no way to a secondary") as caught:
        one(["/dev/a"], (way,))
    assert caught.value.hint


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_words_are_a_spec_or_a_usage_error(word: str, via: str) -> None:
    try:
        (found,) = one([word], (via,))
    except UsageError:
        return
    assert found.device in word and (found.cache is None or found.delay_ms is None)


@given(st.integers(0, 1 << 20))
def test_options_take_numbers_as_they_are(number: int) -> None:
    assert SizeType().convert(number, None, None) == number
    assert SizeType().convert(f"{number}K", None, None) == number * KIB
    assert DurationType().convert(f"{number}m", None, None) == number * 60
    assert DurationType().convert(float(number), None, None) == number


def test_without_a_terminal_a_yes_has_to_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmsoft.cli.options import confirm

    monkeypatch.setattr(os, "isatty", lambda _: False)
    confirm("Sure?", yes=True)
    with pytest.raises(UsageError, match="needs a yes") as caught:
        confirm("Sure?", yes=False)
    assert "--yes" in (caught.value.hint or "")


def test_what_a_person_is_asked_about() -> None:
    disk = BlockDevice("sdb", "/dev/sdb", 8, 16, 4 << 40, "disk", model="WDC WD40EFRX", serial="WD-1")
    volume = BlockDevice("dm-3", "/dev/dm-3", 253, 3, 1 << 30, "dm", dm_name="vg-lv")
    assert question(["/dev/disk/by-id/wd", "/dev/vg/lv"], [disk, volume]) == (
        "Everything on these devices will be lost:\n"
        "  /dev/disk/by-id/wd  4 TiB  WDC WD40EFRX  WD-1\n"
        "  /dev/vg/lv          1 GiB  vg-lv\n"
        "Go on?"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_a_resync_to_stop(number: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Both end it the same way: the run notices, and its promises hold."""
    from dmsoft.mirror import sync
    from dmsoft.resync.copy import CancelledError

    def fake(_wanted: sync.Request, _watch: object, cancelled: threading.Event) -> object:
        os.kill(os.getpid(), number)
        assert cancelled.is_set()
        raise CancelledError("The copy was cancelled.", hint="Again.")

    monkeypatch.setattr(sync, "resync", fake)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run(["resync", "m"]) == 1
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "cancelled" in capsys.readouterr().err


def test_status_alone_does_not_load_what_it_does_not_need() -> None:
    """It is run often, by scripts."""
    program = (
        "import sys; from dmsoft.cli import run; import dmsoft.mirror.observe; run(['status', '--help']); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert cli.__name__ in loaded
    assert not loaded & {"rich", "numpy", "pyudev", "dmsoft.cli.create"}


def expects(*words: str, labels: tuple[str, ...] = ("one", "two")) -> list[float | None]:
    devices = [f"{label}=/dev/{label}" for label in labels]
    return [spec.expect for spec in secondaries(devices, (), "periodic", 300.0, None, words)]


def test_how_often_a_disk_is_expected() -> None:
    assert expects() == [None, None]
    assert expects("7d") == [7 * 86400.0, 7 * 86400.0]
    assert expects("two=1h") == [None, 3600.0]
    assert expects("two=1h", "1d") == expects("1d", "two=1h") == [86400.0, 3600.0]
    for bad in ("x", "0s", "nobody=7d", "one=", "99999999999w"):
        with pytest.raises(UsageError):
            expects(bad)


def test_words_that_are_no_text(capsys: Capture) -> None:
    """A path of other bytes could be put into no header and no JSON."""
    for line in (["examine", "/dev/\udcff"], ["attach", "--json", "\udc80"]):
        assert run(line) == 2
        assert "is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["9" * 5000, "9" * 10, "-1", "x", "٣", ""])
def test_a_terminal_of_no_size(columns: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    assert run(["explain"]) == 0
    assert "busy" in capsys.readouterr().out and "COLUMNS" not in os.environ


def test_a_terminal_that_lacks_a_sign() -> None:
    """It gets a question mark; a script gets the same JSON in every locale."""
    environment = {"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"}

    def said(*words: str) -> "subprocess.CompletedProcess[bytes]":
        argv = [sys.executable, "-m", "dmsoft.cli", *words]
        return subprocess.run(argv, env=environment, capture_output=True, check=False)

    plain, json_line = said("explain", "日本"), said("explain", "日本", "--json")
    assert (plain.returncode, json_line.returncode) == (5, 5)
    assert b"There is no code '??'." in plain.stderr
    assert json.loads(json_line.stderr)["error"]["message"] == "There is no code '日本'."


def test_root_leaves_no_file_that_others_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dmsoft", "explain", "busy"])
    before = os.umask(0)
    try:
        with pytest.raises(SystemExit):
            cli.main()
        assert os.umask(0) & 0o022 == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_disk_becomes_standard_error(closed: str) -> None:
    """Of a caller that closed its own, the next file that is opened would be that."""
    look = "import os; from dmsoft.cli import surroundings; surroundings.inherit(); os._exit(os.open(os.devnull, 0))"
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -c '{look}' {closed}"], check=False)
    assert done.returncode > 2
    words = "-m dmsoft.cli explain busy --json"
    assert subprocess.run(["sh", "-c", f"exec {sys.executable} {words} {closed}"], check=False).returncode == 0


def test_a_program_that_fails_has_failed() -> None:
    """Also if the caller ignores SIGCHLD, by which the kernel forgets how a child ended."""
    look = "from dmsoft.cli.surroundings import inherit; inherit(); from dmsoft.run import run; run(['false'])"
    ignore = "import os, signal as s, sys; s.signal(s.SIGCHLD, s.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    argv = [sys.executable, "-c", ignore, sys.executable, "-c", look]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 1 and b"false failed: status 1" in done.stderr


def test_no_room_for_an_answer() -> None:
    """That is an error of its own; an error that cannot be told has its status all the same."""

    def said(words: str) -> "subprocess.CompletedProcess[bytes]":
        argv = ["sh", "-c", f"exec {sys.executable} -m dmsoft.cli {words}"]
        return subprocess.run(argv, capture_output=True, check=False)

    for words in ("explain busy", "explain busy --json"):
        done = said(f"{words} >/dev/full")
        assert done.returncode == 6 and b"The answer could not be written: No space left" in done.stderr
    assert said("explain nothing 2>/dev/full").returncode == 5


def test_a_copy_goes_on_when_nobody_can_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        for as_json in (True, False):
            with reporter(as_json=as_json) as watch:
                watch.planned([Planned("one", "full", "it is new", 5)], 5)
                watch.phase("pass 1", 5)
                watch.advance(5)
                watch.note("a note")
        with pytest.raises(DeviceError, match="The answer could not be written"):
            emit({})
        monkeypatch.undo()
        full.close = lambda: None  # type: ignore[method-assign]  # what it holds back has nowhere to go
