"""The tour, ``python -m creche``, on real files, compared with ``sha256sum``."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from creche import __main__ as tour
from creche import get_current_worker
from helpers import run_python

GUARD = 20  # seconds until something that hangs fails the test
COLUMNS = 80

SHA256SUM = shutil.which("sha256sum") or ""
needs_sha256sum = pytest.mark.skipif(not SHA256SUM, reason="there is no sha256sum to compare with")


@pytest.fixture(params=sorted(anyio.get_available_backends()))
def backend(request):
    return request.param


@pytest.fixture
def take(backend, capsysbinary):
    """Take the tour, and return the status, standard output and the lines of standard error."""

    def take(*arguments):
        status = tour.main(["--backend", backend, *map(os.fspath, arguments)])
        captured = capsysbinary.readouterr()
        return status, captured.out, captured.err.decode().splitlines()

    return take


@pytest.fixture
def meanwhile(monkeypatch):
    """Return a function that installs a call before each chunk is hashed, in the worker thread."""
    real = hashlib.sha256

    def install(call):
        class Sha256:
            def __init__(self):
                self.sum = real()
                self.digest = self.sum.digest

            def update(self, chunk):
                call()
                self.sum.update(chunk)

        # Not in hashlib itself, which other threads use too.
        monkeypatch.setattr(tour, "hashlib", SimpleNamespace(sha256=Sha256))

    return install


@pytest.fixture
def terminal():
    """A terminal of 80 columns, which keeps what was drawn."""
    pty = pytest.importorskip("pty", reason="there are no such terminals here")
    outside, inside = pty.openpty()
    resize(inside)
    with Terminal(outside) as terminal, os.fdopen(inside, "w", encoding="utf-8") as terminal.stream:
        yield terminal


def resize(terminal):
    fcntl = pytest.importorskip("fcntl")
    termios = pytest.importorskip("termios")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))


class Terminal:
    """Reads what is written to a terminal, so that the writer never has to wait."""

    def __init__(self, outside):
        self.outside = outside
        self.drawn = b""
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self.read)

    def __enter__(self):
        self.reader.start()
        return self

    def __exit__(self, *_):
        self.reader.join(GUARD)  # the writing side is closed now
        os.close(self.outside)

    def read(self):
        while True:
            try:
                data = os.read(self.outside, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # this is how a terminal ends
                data = b""
            with self.news:
                self.drawn += data
                self.news.notify_all()
            if not data:
                return

    def wait_for(self, pattern):
        with self.news:
            assert self.news.wait_for(lambda: re.search(pattern, self.drawn), GUARD), self.drawn


def sha256sum(*paths):
    return subprocess.run([SHA256SUM, "--", *paths], stdout=subprocess.PIPE, check=True).stdout


def sum_of(content):
    return hashlib.sha256(content).hexdigest().encode()


# what the tour prints


@needs_sha256sum
def test_all_files_below_the_current_folder_are_summed_in_the_order_of_their_paths(
    take, tmp_path, monkeypatch
):
    """The output is byte for byte that of sha256sum for the same paths in bytewise order."""
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        path = Path(f"{number % 3}", "Z" if number % 2 else "a-b", f"{number}.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 30_000))
    found = [f"./{path}" for path in Path().rglob("*.bin")]
    expected = sha256sum(*sorted(found, key=os.fsencode))
    assert take("--workers", "3") == (0, expected, [])


@needs_sha256sum
def test_paths_are_printed_as_they_were_given_and_each_as_often(take, tmp_path, monkeypatch):
    """Files and folders may be mixed, and a path that is given twice is printed twice."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder", "in").write_bytes(b"in")
    Path("out").write_bytes(b"")
    expected = sha256sum("./out", "folder/in", "folder/in", "out", "out")
    assert take("out", "folder/", "folder", "./out", "out") == (0, expected, [])


@needs_sha256sum
@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"re\rturn", b"back\\slash", b"\\\n\r", b"tab\t *", b"caf\xe9", "日本".encode()],
)
def test_names_are_escaped_as_sha256sum_does(take, tmp_path, monkeypatch, name):
    """Whatever bytes a name has, the line is that of sha256sum, and sha256sum can check it."""
    monkeypatch.chdir(tmp_path)
    try:
        Path(os.fsdecode(name)).write_bytes(b"content")
    except OSError:
        pytest.skip("the file system takes no such name")
    status, sums, said = take()
    assert (status, sums, said) == (0, sha256sum(b"./" + name), [])
    assert take(os.fsdecode(name)) == (0, sha256sum(name), [])
    subprocess.run([SHA256SUM, "--check", "--strict", "--status"], input=sums, check=True)


def test_links_are_followed(take, tmp_path, monkeypatch):
    """A file is summed under each name that leads to it, through links to files and to folders."""
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a", "file").write_bytes(b"x")
    Path("b").symlink_to("a")
    Path("c").symlink_to("a/file")
    names = (b"./a/file", b"./b/file", b"./c")
    expected = b"".join(b"%s  %s\n" % (sum_of(b"x"), name) for name in names)
    assert take() == (0, expected, [])


def test_a_file_that_grows_is_summed_as_far_as_it_was_read(take, tmp_path, meanwhile):
    """What is appended before the end is reached is part of the sum."""
    path = tmp_path / "log"
    path.write_bytes(b"first")

    def grow():
        if path.stat().st_size == 5:
            with path.open("ab") as file:
                file.write(b"second")

    expected = b"%s  %s\n" % (sum_of(b"firstsecond"), os.fsencode(path))
    meanwhile(grow)
    assert take(path) == (0, expected, [])


def test_no_files_are_said_to_be_none(take, tmp_path):
    """An empty folder gives no sums, only a message, and is not a failure."""
    assert take(tmp_path) == (0, b"", ["creche: no files found"])


# what goes wrong


def test_what_cannot_be_summed_is_told_and_the_rest_goes_on(take, tmp_path, monkeypatch):
    """Each failure is a line on standard error, the other files are summed, and the status is 1."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder", "good").write_bytes(b"x")
    Path("folder", "loop").symlink_to("..")
    Path("broken").symlink_to("nowhere")
    Path("ring").symlink_to("ring")
    os.mkfifo("pipe")
    status, sums, said = take(".", "missing")
    assert status == 1
    assert sums == b"%s  ./folder/good\n" % sum_of(b"x")
    assert said == [
        "creche: ./broken: Broken link",
        "creche: ./folder/loop: A loop: the folder is within itself",
        "creche: ./pipe: Not a regular file",
        f"creche: ./ring: {os.strerror(errno.ELOOP)}",
        f"creche: missing: {os.strerror(errno.ENOENT)}",
    ]


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that root cannot read"
)
def test_a_file_that_fails_while_it_is_read_is_told(take, tmp_path):
    """A read error is a line on standard error, not a traceback."""
    path = tmp_path / "memory"
    path.symlink_to("/proc/self/mem")  # nothing is mapped at address 0
    assert take(tmp_path) == (1, b"", [f"creche: {path}: {os.strerror(errno.EIO)}"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_files_and_folders_without_permission_are_told(take, tmp_path):
    """Each file or folder without permission is a line on standard error."""
    (tmp_path / "file").touch(mode=0)
    (tmp_path / "folder").mkdir(mode=0)
    denied = os.strerror(errno.EACCES)
    said = [f"creche: {tmp_path / name}: {denied}" for name in ("file", "folder")]
    assert take(tmp_path) == (1, b"", said)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_file_that_became_a_pipe_is_not_waited_for(take, tmp_path, meanwhile):
    """A file that was replaced by a pipe is an error at once, as reading it could block forever."""
    first, second, writers = tmp_path / "a", tmp_path / "b", []
    expected = sum_of(b"x")
    first.write_bytes(b"x")
    second.write_bytes(b"y")

    def swap():
        if not writers:
            second.unlink()
            os.mkfifo(second)
            writers.append(os.open(second, os.O_RDWR | os.O_NONBLOCK))

    meanwhile(swap)
    try:
        status, sums, said = take("--workers", "1", tmp_path)
    finally:
        os.close(*writers)
    assert (status, sums) == (1, b"%s  %s\n" % (expected, os.fsencode(first)))
    assert said == [f"creche: {second}: Has to be waited for"]


def test_a_full_standard_error_is_no_failure(monkeypatch):
    """If standard error cannot be written to, messages are dropped from then on."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "full")

    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    tour.show("one")
    with sys.stderr as nowhere:
        tour.show("two")
    assert full.closed
    assert nowhere.name == os.devnull


async def test_the_line_ends_with_its_terminal(monkeypatch):
    """If standard error is no longer a terminal, the line is only wiped, and nothing is drawn."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    await tour.Tour(1).draw_line()
    assert sys.stderr.getvalue() == "\r\x1b[K"


def test_a_file_that_shrinks_while_it_is_read_is_told(take, tmp_path, meanwhile):
    """A file that shrinks while it is read gets no sum but an error."""
    path = tmp_path / "file"
    path.write_bytes(bytes(tour.CHUNK + 1))
    meanwhile(lambda: os.truncate(path, 1))
    assert take(path) == (1, b"", [f"creche: {path}: Shrank while it was read"])


def test_names_in_messages_are_plain_text_in_one_line(take):
    """Line ends, escape sequences and broken UTF-8 in a name do not reach the terminal."""
    missing = os.strerror(errno.ENOENT)
    said = [f"creche: é\\n\\x1b[31m\\xff: {missing}", "creche: no files found"]
    assert take(os.fsdecode("é\n\x1b[31m".encode() + b"\xff")) == (1, b"", said)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--workers", "many"], "invalid int value"),
        (["--backend", "twisted"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(capsys, arguments, complaint):
    """A wrong option ends the program with a usage message and status 2."""
    with pytest.raises(SystemExit) as caught:
        tour.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_reader_that_has_left_is_no_reason_to_complain(take, tmp_path, monkeypatch):
    """If the reader has left, as with ``| head``, the status is 1 and nothing is printed."""
    (tmp_path / "file").touch()
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w", encoding="utf-8"))
    assert take(tmp_path) == (1, b"", [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_sums_that_cannot_be_written_are_told(take, tmp_path, monkeypatch):
    """A full disk is reported in a line on standard error, with status 1."""
    (tmp_path / "file").touch()
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", os.fdopen(full, "w", encoding="utf-8"))
    said = [f"creche: cannot write the sums: {os.strerror(errno.ENOSPC)}"]
    assert take(tmp_path) == (1, b"", said)


# workers


def test_as_many_files_as_asked_for_are_hashed_at_once(take, tmp_path, meanwhile):
    """Two workers hash two files at the same time, never three, and at most one more is queued."""
    for number in range(6):
        (tmp_path / f"{number}").write_bytes(b"x")
    pair = threading.Barrier(2)
    crowds = []

    def meet():
        hashes = get_current_worker().node.hashes
        crowds.append((hashes.running, hashes.queued))
        pair.wait(GUARD)

    meanwhile(meet)
    assert take("--workers", "2", tmp_path)[0] == 0
    assert len(crowds) == 6
    assert max(running for running, _ in crowds) == 2
    assert max(queued for _, queued in crowds) <= 1


@pytest.mark.parametrize("stage", ["finding", "hashing"])
def test_ctrl_c_ends_all_workers(take, tmp_path, meanwhile, monkeypatch, stage):
    """Ctrl+C, once or twice, cancels all, reports how far the tour got, and exits with 130."""
    (tmp_path / "file").write_bytes(bytes(2 * tour.CHUNK))
    heard, cancelled = threading.Semaphore(0), []

    def cancel(node, reason, real=tour.Tour.cancel):
        real(node, reason)
        heard.release()

    def press():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            # The system delivers a signal to the main thread some time later, and its handler must
            # still be installed then.
            assert heard.acquire(timeout=GUARD)
            cancelled.append(get_current_worker().cancelled_event.wait(GUARD))

    def listdir(path, real=os.listdir):
        if path == os.fsencode(tmp_path):  # other threads list folders too
            press()
        return real(path)

    monkeypatch.setattr(tour.Tour, "cancel", cancel)
    if stage == "finding":
        monkeypatch.setattr(os, "listdir", listdir)
        said = "creche: stopped by Ctrl+C: 0 files found"
    else:
        meanwhile(press)
        said = "creche: stopped by Ctrl+C: 256.0 KiB of 512.0 KiB, 0 of 1 files, "
    status, sums, lines = take(tmp_path)
    assert (status, sums, cancelled) == (130, b"", [True, True])
    assert len(lines) == 1
    assert lines[0].startswith(said)


# the live view


@pytest.mark.parametrize("view", ["board", "line"])
def test_a_terminal_shows_how_far_it_is(take, terminal, tmp_path, meanwhile, monkeypatch, view):
    """The live view shows bytes, files, rate and running workers, in lines that fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(tour, "INTERVAL", 0.001)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    if view == "board":
        pytest.importorskip("rich")
        drawn = (
            rb" first [^\n]*50%[^\n]*/s[^\n]*\n"
            rb"[^\n]* second( word)+[^\n]*\xe2\x80\xa6[^\n]*50%[^\n]*\n"
            rb"[^\n]*\n[^\n]*all[^\n]* 512.0 KiB of 1.0 MiB, 0 of 2 files[^\n]*50%[^\n]*/s"
        )
        ended = rb"4 done[^\n]*\n[^\n]*"
    else:
        monkeypatch.setitem(sys.modules, "creche.board", None)  # as if Rich were missing
        drawn = rb"512.0 KiB of 1.0 MiB, 0 of 2 files, [^\n]*B/s \| 50% first \| 50% second"
        ended = rb"\r\x1b\[K"
    names = ["first", "second" + 30 * " word"]
    for name in names:
        Path(name).write_bytes(bytes(2 * tour.CHUNK))
    both = threading.Barrier(2)

    def look():
        if get_current_worker().completed_steps:
            both.wait(GUARD)
            terminal.wait_for(drawn)

    meanwhile(look)
    status, sums, _ = take("--workers", "2", *names)
    terminal.wait_for(ended + rb"creche: 1.0 MiB of 1.0 MiB, 2 of 2 files, .*B/s\r\n")
    assert (status, sums.count(b"\n")) == (0, 2)
    shown = re.sub(rb"\x1b\[[?\d;]*[A-Za-z]", b"", terminal.drawn).decode()
    assert re.match(r"\W*\d files found" if view == "line" else r"\W*tour +rate", shown)
    lines = re.split("[\r\n]+", shown)
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (2**30 - 2**20, "1023.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_numbers_of_bytes_are_told_in_units(number, words):
    """A unit is used for 1 to 1023 of it. TiB is the largest."""
    assert tour.in_bytes(number) == words


# the command


def command(*arguments):
    return [sys.executable, "-m", "creche", *map(os.fspath, arguments)]


def test_it_is_a_command(tmp_path, capsysbinary, monkeypatch):
    """As a program, the tour reads arguments from the command line and exits with the status."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["creche", str(tmp_path), str(tmp_path / "missing")])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(tour.__file__, run_name="__main__")
    assert caught.value.code == 1
    assert capsysbinary.readouterr().out.startswith(sum_of(b""))


def test_a_process_whose_reader_has_left_ends_in_silence(backend, tmp_path):
    """If the reader has left, the interpreter does not complain about the pipe at exit, either."""
    (tmp_path / "file").touch()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        ran = subprocess.run(
            command("--backend", backend, tmp_path),
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            timeout=GUARD,
        )
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_process_with_a_closed_stream_tells_by_the_other(backend, tmp_path, closed):
    """If one stream is closed, so that Python sets it to None, the other is still written to."""
    file = tmp_path / "file"
    file.touch()
    ran = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}>&-', "sh", *command("--backend", backend, file)],
        capture_output=True,
        check=False,
        timeout=GUARD,
    )
    if closed == 1:
        told = b"creche: cannot write the sums: standard output is closed\n"
        assert (ran.returncode, ran.stderr) == (1, told)
    else:
        assert (ran.returncode, ran.stdout) == (0, sha256sum(file))


def test_a_process_obeys_ctrl_c_within_a_huge_file(backend, tmp_path):
    """Ctrl+C in a terminal ends the process with status 130 and one line, not a traceback."""
    pty = pytest.importorskip("pty", reason="there are no such terminals here")
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)  # it is sparse
    outside, inside = pty.openpty()
    resize(inside)
    process = subprocess.Popen(
        command("--backend", backend, huge),
        stdout=subprocess.PIPE,
        stderr=inside,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(inside)
    with Terminal(outside) as terminal, process:
        try:
            terminal.wait_for(rb"[^ 0]* [MG]iB of 1.0 TiB, 0 of 1 files")
            process.send_signal(signal.SIGINT)
            sums, _ = process.communicate(timeout=GUARD)
        finally:
            process.kill()
    assert (process.returncode, sums) == (130, b"")
    *_, last = terminal.drawn.decode().strip().splitlines()
    assert re.search(r"creche: stopped by Ctrl\+C: .* of 1.0 TiB, 0 of 1 files, ", last)
    assert b"Traceback" not in terminal.drawn


@pytest.mark.skipif(sys.platform == "win32", reason="Processes() is not for Windows")
def test_in_processes(take, tmp_path):
    """With processes, the sums and the problems are the same as with threads."""
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(bytes(number * 1000))
    (tmp_path / "closed").touch()
    (tmp_path / "closed").chmod(0)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    in_threads = take("--workers", "2", tmp_path)
    assert take("--workers", "2", "--where", "processes", tmp_path) == in_threads


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_main_module_elsewhere(engine, tmp_path):
    """The main module of the program can be imported by the processes of either engine."""
    if engine == "processes" and sys.platform == "win32":
        pytest.skip("Processes() is not for Windows")
    if engine == "dask":
        pytest.importorskip("distributed")
    (tmp_path / "file").write_text("hello")
    arguments = ("--workers", "1", "--where", engine, str(tmp_path))
    command = [sys.executable, "-m", "creche", *arguments]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=GUARD * 9)
    assert ended.stdout.startswith(hashlib.sha256(b"hello").hexdigest().encode()), ended.stderr


def test_engine_that_is_not_installed(tmp_path):
    """If the engine's extra is missing, the error names it and says what to install."""
    program = (
        "import sys; sys.modules['distributed'] = None; from creche.__main__ import main; main()"
    )
    done = run_python(program, "--where", "dask", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "creche: creche.dask needs distributed: pip install 'creche[dask]'\n"
