import hashlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from file_server import Fault, FileServer

from keras_issl.zoo.downloads import DownloadError, download

pytestmark = pytest.mark.backend_independent
DATA = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def server():
    with FileServer({"/file": DATA}) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.torch"


def fetch(server, path, **options):
    return download(server.url(), path, **{"timeout": 5, "attempts": 3, "pause": 0.02, "verbose": False} | options)


def left(path):
    """The names in the folder of `path`."""
    return sorted(file.name for file in path.parent.iterdir())


def assert_whole(path, content=DATA):
    assert path.read_bytes() == content
    assert left(path) == [path.name]


def assert_each_byte_once(server):
    """Every answer began where the one before had ended, and all of them together sent the file once."""
    end = 0
    for entry in (entry for entry in server.log if entry.status in (200, 206)):
        assert entry.start == end
        end += entry.sent
    assert end == len(DATA)


def test_file_arrives_whole(server, path):
    assert fetch(server, path, sha256=SHA256.upper(), size=len(DATA)) == path
    assert_whole(path)
    assert_each_byte_once(server)
    assert "Range" not in server.log[0].headers


def test_existing_file_is_replaced_only_by_a_whole_one(server, path):
    fetch(server, path)
    server.files["/file"], server.always = OTHER, Fault(cut=1000, ignore_range=True)
    with pytest.raises(DownloadError):
        fetch(server, path)
    assert path.read_bytes() == DATA
    server.always = Fault()
    fetch(server, path)
    assert_whole(path, OTHER)


def test_empty_file(server, path):
    server.files["/file"] = b""
    fetch(server, path)
    assert_whole(path, b"")


@pytest.mark.parametrize("validators", [("ETag", "Last-Modified"), ("ETag",), ("Last-Modified",)])
def test_truncated_stalled_and_torn_transfers_are_resumed(server, path, validators):
    server.always = Fault(validators=validators)
    server.faults = [
        Fault(cut=70_000, validators=validators),
        Fault(stall=50_001, validators=validators),
        Fault(reset=True),
        Fault(cut=1, validators=validators),
    ]
    fetch(server, path, timeout=0.3)
    assert_whole(path)
    assert_each_byte_once(server)
    assert [entry.start for entry in server.log if entry.status] == [0, 70_000, 120_001, 120_002]


def test_progress_resets_the_count_of_attempts(server, path):
    server.faults = [Fault(cut=10_000)] * 10
    fetch(server, path, attempts=1)
    assert_whole(path)
    assert_each_byte_once(server)


def test_another_call_resumes(server, path):
    server.faults = [Fault(cut=100_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path)
    assert left(path) == ["file.torch.part", "file.torch.part.json"]
    fetch(server, path, sha256=SHA256)
    assert_whole(path)
    assert server.log[-1].start == 100_000 and server.log[-1].sent == 200_000


def test_parts_of_206_answers_add_up(server, path):
    server.faults = [Fault(cut=100_000)]
    server.always = Fault(longest=90_000)
    fetch(server, path)
    assert_whole(path)
    assert_each_byte_once(server)


@pytest.mark.parametrize(
    "fault", [Fault(content=OTHER), Fault(content=OTHER, ignore_if_range=True), Fault(content=OTHER[:200_000])]
)
def test_changed_file_is_never_glued(server, path, fault):
    server.faults = [Fault(cut=100_000), fault]
    fetch(server, path)
    assert_whole(path, fault.content)
    assert server.log[1].headers["If-Range"] == '"v1"'
    assert server.log[1].status == (206 if fault.ignore_if_range else 200)


def test_changed_file_that_became_shorter_than_the_part(server, path):
    server.faults = [Fault(cut=100_000), Fault(content=OTHER[:50_000], ignore_if_range=True)]
    fetch(server, path)
    assert [entry.status for entry in server.log] == [200, 416, 200]
    assert_whole(path, OTHER[:50_000])


def test_without_validators_it_starts_over(server, path):
    server.always = Fault(validators=())
    server.faults = [Fault(cut=100_000, validators=())]
    fetch(server, path)
    assert_whole(path)
    assert all("Range" not in entry.headers for entry in server.log)


def test_weak_etag_does_not_identify_bytes(server, path):
    weak = {"ETag": 'W/"1"'}
    server.always, server.faults = Fault(headers=weak, validators=()), [Fault(cut=9, headers=weak, validators=())]
    fetch(server, path)
    assert all("Range" not in entry.headers for entry in server.log)


def test_server_without_ranges_starts_over(server, path):
    server.faults, server.always = [Fault(cut=100_000)], Fault(ignore_range=True)
    fetch(server, path)
    assert_whole(path)
    assert "Range" in server.log[1].headers and server.log[1].status == 200


@pytest.mark.parametrize("value", [None, "bytes 7-299999/300000", "bytes 100000-299999/*", "bytes 100000-99/300000"])
def test_wrong_content_range_starts_over(server, path, value):
    wrong = Fault(shift=10) if value is None else Fault(headers={"Content-Range": value})
    server.faults = [Fault(cut=100_000), wrong]
    fetch(server, path)
    assert_whole(path)
    assert "Range" not in server.log[2].headers


def test_another_address_does_not_continue_the_part(server, path):
    server.files["/other"] = OTHER
    server.faults = [Fault(cut=100_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path)
    download(server.url("/other"), path, timeout=5, verbose=False)
    assert_whole(path, OTHER)


@pytest.mark.parametrize("notes", [b"", b"{}", b"[]", b'{"url": 3, "validator"', b"\xff\xfe", None])
def test_damaged_notes_start_over(server, path, notes):
    server.faults = [Fault(cut=100_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path)
    if notes is None:
        path.with_name("file.torch.part").write_bytes(OTHER + OTHER)  # longer than the file
    else:
        path.with_name("file.torch.part.json").write_bytes(notes)
    fetch(server, path)
    assert_whole(path)


def test_complete_part_needs_no_request(server, path):
    """Killed between the last byte and the renaming."""
    server.faults = [Fault(cut=299_999), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path)
    with open(path.with_name("file.torch.part"), "ab") as file:
        file.write(DATA[-1:])
    fetch(server, path, sha256=SHA256)
    assert_whole(path)
    assert len(server.log) == 2


def test_complete_part_of_unknown_length(server, path):
    """A part that holds everything, but its notes don't say so: the server answers 416."""
    server.faults = [Fault(framing="chunked", stall=300_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path, timeout=0.3)
    fetch(server, path)
    assert_whole(path)
    assert [entry.status for entry in server.log] == [200, 404, 416, 200]


# --- lengths -----------------------------------------------------------------------------------------------------


def test_length_declared_too_long_is_never_reached(server, path):
    server.always = Fault(declare=1000)
    with pytest.raises(DownloadError, match="300,000 of 301,000 bytes|HTTP 416"):
        fetch(server, path)
    assert not path.exists()


@pytest.mark.parametrize("fault", [Fault(declare=-1000), Fault(extra=b"more"), Fault(endless=True)])
@pytest.mark.parametrize("checks", [{}, {"sha256": SHA256, "size": 299_000}])
def test_body_longer_than_declared_is_refused(server, path, fault, checks):
    server.always = fault
    with pytest.raises((DownloadError, ValueError), match=r"should have .* bytes|`size` should be"):
        fetch(server, path, **checks)
    assert left(path) == []
    assert len(server.log) == 1


def test_endless_chunks_end_at_the_size(server, path):
    server.always = Fault(framing="chunked", endless=True)
    with pytest.raises(DownloadError, match="should have 300,000 bytes.* Received: more"):
        fetch(server, path, size=300_000)
    assert left(path) == []


def test_length_beyond_all_measure_is_refused(server, path):
    server.always = Fault(declare=10**15)
    with pytest.raises(DownloadError, match="at most 8,589,934,592 bytes"):
        fetch(server, path)


def test_chunks_without_a_length_are_accepted_when_they_end(server, path):
    server.always = Fault(framing="chunked")
    fetch(server, path)
    assert_whole(path)


@pytest.mark.parametrize("checks", [{}, {"size": 300_000}, {"sha256": SHA256}])
def test_truncated_chunks_are_resumed(server, path, checks):
    server.always = Fault(framing="chunked")
    server.faults = [Fault(framing="chunked", cut=100_000), Fault(framing="chunked", stall=100_000)]
    fetch(server, path, timeout=0.3, **checks)
    assert_whole(path)
    assert_each_byte_once(server)


def test_no_length_at_all_needs_size_or_sha256(server, path):
    server.always = Fault(framing="close")
    with pytest.raises(DownloadError, match="Pass `size` or `sha256`"):
        fetch(server, path)
    fetch(server, path, sha256=SHA256)
    assert_whole(path)
    path.unlink()
    server.faults = [Fault(framing="close", cut=1234)]
    fetch(server, path, size=len(DATA))
    assert_whole(path)
    path.unlink()
    server.faults = [Fault(framing="close", cut=1234)]
    with pytest.raises(ValueError, match="`sha256`"):
        fetch(server, path, sha256=SHA256)
    assert left(path) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_run_of_misfortunes_leaves_a_whole_file_or_none(server, path, seed):
    rng = np.random.default_rng(seed)
    faults = [Fault(cut=int(cut)) for cut in rng.integers(0, 300_000, 8)]
    faults += [Fault(declare=1000), Fault(declare=-1000), Fault(extra=b"x"), Fault(shift=7), Fault(longest=50_000)]
    faults += [Fault(content=OTHER, ignore_if_range=True), Fault(content=OTHER[:99_000]), Fault(content=DATA + OTHER)]
    faults += [
        Fault(framing="chunked", cut=70_000),
        Fault(framing="close", cut=70_000),
        Fault(ignore_range=True, cut=9),
    ]
    faults += [Fault(reset=True), Fault(status=503), Fault(status=404), Fault(location=server.url())]
    server.faults = [faults[i] for i in rng.integers(0, len(faults), 12)]
    while server.faults:
        try:
            fetch(server, path, attempts=2)
        except DownloadError:
            assert not path.exists()
        else:
            assert_whole(path, server.files["/file"])
            path.unlink()
    fetch(server, path)
    assert_whole(path, server.files["/file"])


# --- hash and size -----------------------------------------------------------------------------------------------


def test_corrupt_bytes_are_refused_and_fetched_afresh(server, path):
    server.faults = [Fault(cut=100_000, flip=5)]
    with pytest.raises(ValueError, match="`sha256`") as error:
        fetch(server, path, sha256=SHA256)
    assert server.url() in str(error.value) and SHA256 in str(error.value)
    assert len(re.findall("[0-9a-f]{64}", str(error.value))) == 2  # expected and received
    assert left(path) == []
    fetch(server, path, sha256=SHA256)
    assert_whole(path)


def test_wrong_size_is_refused_before_the_body_is_read(server, path):
    with pytest.raises(ValueError, match="`size` .* Received: 300000 where 300001 was expected"):
        fetch(server, path, size=300_001)
    assert left(path) == [] and len(server.log) == 1


def test_login_page_in_between_does_not_cost_the_part(server, path):
    server.faults = [Fault(cut=100_000), Fault(ignore_range=True, declare=-299_000)]
    with pytest.raises(ValueError, match="`size` .* Received: 1000 "):
        fetch(server, path, size=len(DATA), sha256=SHA256)
    fetch(server, path, size=len(DATA), sha256=SHA256)
    assert_whole(path)
    assert server.log[-1].start == 100_000


def test_wrong_size_of_chunks(server, path):
    server.always = Fault(framing="chunked")
    with pytest.raises(DownloadError, match="HTTP 416|should have 300,001|300,000 of 300,001"):
        fetch(server, path, size=300_001)
    assert not path.exists()


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://127.0.0.1/x", "/file", "http://", "https://me:secret@127.0.0.1/", "http://a b/"],
)
def test_only_web_addresses_without_credentials(path, url):
    with pytest.raises(ValueError, match="`url` should") as error:
        download(url, path)
    assert "secret" not in str(error.value) and not path.parent.exists()


def test_bad_sha256_is_refused_before_anything_is_fetched(server, path):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        fetch(server, path, sha256="abc")
    assert server.log == []


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status, meaning", [(404, "no such file"), (403, "refuses"), (401, "credentials"), (400, "")])
def test_refusals_are_final(server, path, status, meaning):
    server.always = Fault(status=status)
    with pytest.raises(DownloadError, match=rf"HTTP {status} .*{meaning}") as error:
        fetch(server, path)
    assert server.url() in str(error.value)
    assert len(server.log) == 1 and left(path) == []


@pytest.mark.parametrize("status", [204, 206, 304])
def test_answers_without_a_file_are_refused(server, path, status):
    server.always = Fault(status=status)
    with pytest.raises(DownloadError):
        fetch(server, path)
    assert left(path) == []


def test_503_twice_then_fine(server, path):
    server.faults = [Fault(status=503), Fault(status=500), Fault(cut=100_000), Fault(status=502)]
    fetch(server, path)
    assert_whole(path)


def test_server_errors_end(server, path):
    server.always = Fault(status=503, headers={"Retry-After": "0"})
    with pytest.raises(DownloadError, match=r"HTTP 503.*resumes where it stopped.*HTTPS_PROXY"):
        fetch(server, path)
    assert len(server.log) == 3


def test_retry_after_is_honoured(server, path):
    server.faults = [Fault(status=429, headers={"Retry-After": "1"})]
    start = time.monotonic()
    fetch(server, path)
    assert time.monotonic() - start >= 1  # a lower bound: the pause is the behaviour
    assert_whole(path)


@pytest.mark.parametrize("value", ["Wed, 01 Jan 2020 00:00:00 GMT", "soon", "-5", "nan", "9" * 400 + "x"])
def test_odd_retry_after_does_no_harm(server, path, value):
    server.faults = [Fault(status=429, headers={"Retry-After": value})]
    fetch(server, path)
    assert_whole(path)


def test_stalling_forever_ends(server, path):
    server.always = Fault(stall=0)
    with pytest.raises(DownloadError, match="nothing came"):
        fetch(server, path, timeout=0.3)
    assert len(server.log) == 3


def test_truncating_at_the_same_byte_forever_ends(server, path):
    server.always = Fault(cut=1000, ignore_range=True)
    with pytest.raises(DownloadError, match="1,000 of 300,000 bytes"):
        fetch(server, path)
    assert len(server.log) == 4  # one with progress, three without


# --- redirects ---------------------------------------------------------------------------------------------------


def test_redirects_are_followed_on_resume_too(server, path):
    to = Fault(location=server.url("/stored?signature=1"))
    server.files = {"/stored?signature=1": DATA}
    server.faults = [to, Fault(cut=100_000), to]
    fetch(server, path)
    assert_whole(path)
    assert [entry.path for entry in server.log] == ["/file", "/stored?signature=1"] * 2
    assert server.log[-1].headers["Range"] == "bytes=100000-"


def test_redirect_loop_ends(server, path):
    server.always = Fault(location=server.url())
    with pytest.raises(DownloadError, match="HTTP 302"):
        fetch(server, path)
    assert len(server.log) < 20


def test_redirect_with_an_endless_body_is_followed(server, path):
    server.faults = [Fault(location=server.url(), endless=True, framing="close")]
    fetch(server, path)
    assert_whole(path)


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(server, path, location):
    server.always = Fault(location=location)
    with pytest.raises(DownloadError):
        fetch(server, path)
    assert len(server.log) == 1 and left(path) == []


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for 127.0.0.1, with its key."""
    file = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {file} -out {file}.crt"
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command makes the certificate of the https server")
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_https_is_verified_and_never_left(server, path, certificate, monkeypatch):
    with FileServer({"/file": DATA}, certificate) as secure:
        with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE"):
            fetch(secure, path)
        assert secure.log == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        fetch(secure, path)
        assert_whole(path)
        path.unlink()
        secure.faults = [Fault(cut=100_000), Fault(location=server.url())]
        with pytest.raises(DownloadError, match="should stay on https.*a redirect from https://127.0.0.1 to http:"):
            fetch(secure, path)
        assert server.log == [] and not path.exists()
        server.faults = [Fault(location=secure.url())]  # upwards is fine, and goes on with the same bytes
        download(server.url(), path, timeout=5, verbose=False)
        assert_whole(path)


def test_host_behind_a_redirect_that_cannot_be_reached_is_named(server, path):
    server.always = Fault(location=f"http://localhost:{closed_port()}/file")
    with pytest.raises(DownloadError, match="downloaded: could not reach localhost "):
        fetch(server, path)


# --- no network --------------------------------------------------------------------------------------------------


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_no_network_is_said_at_once(path, host):
    url = f"http://{host}:{closed_port()}/file"
    with pytest.raises(
        DownloadError, match=f"no network: could not reach {host} .*HTTPS_PROXY.*copy the file"
    ) as error:
        download(url, path, timeout=5, attempts=1000, pause=0.02)
    assert url in str(error.value)


def test_proxy_of_the_environment_is_used(server, path, monkeypatch):
    """The file server plays the proxy: a proxied request names the whole address."""
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url("").replace("://", "://me:secret@"))
    server.files = {"http://release.invalid/file": DATA, "http://elsewhere.invalid/file": DATA}
    download("http://release.invalid/file", path, timeout=5)
    assert_whole(path)
    assert "Proxy-Authorization" in server.log[0].headers
    with FileServer({"/file": DATA}) as direct:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server.faults = [Fault(location=direct.url())]
        download("http://release.invalid/file", path, timeout=5)
        assert "Proxy-Authorization" not in direct.log[0].headers


# --- the disk ----------------------------------------------------------------------------------------------------


def test_full_disk_is_said_before_the_body_is_read(server, path):
    server.always = Fault(declare=10**15)
    with pytest.raises(OSError, match="1,000,000,000.3 MB free") as error:
        fetch(server, path, size=10**15 + len(DATA))
    assert not isinstance(error.value, DownloadError) and len(server.log) == 1


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="writable folder with 0.3 MB free") as error:
        fetch(server, tmp_path / "file" / "x", size=len(DATA))
    assert not isinstance(error.value, DownloadError) and server.log == []


def test_disk_that_fills_up_keeps_the_part(server, path):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="could not be written: File too large.* 0.3 MB free") as error:
            fetch(server, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(error.value, DownloadError)
    fetch(server, path)
    assert_whole(path)
    assert 0 < server.log[1].start <= 200_000


# --- other processes ---------------------------------------------------------------------------------------------


THREE_PROCESSES = """
import os, sys
from pathlib import Path
from keras_issl.zoo.cache import locked
from keras_issl.zoo.downloads import download
url, path = sys.argv[1:]
for _ in range(3):
    if not os.fork():
        with locked("name"):
            print(os.getpid(), flush=True)
            if not Path(path).exists():
                download(url, path, timeout=30)
        os._exit(0)
print(*sorted(os.wait()[1] for _ in range(3)))
"""


def test_of_three_processes_one_is_killed_one_goes_on_and_one_finds_the_file(server, path, tmp_path):
    env = os.environ | {"KERAS_ISSL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-W", "ignore", "-c", THREE_PROCESSES, server.url(), str(path)]
    server.faults = [Fault(stall=200_000)]
    part = path.with_name("file.torch.part")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        first = int(process.stdout.readline())
        while not (part.exists() and part.stat().st_size == 200_000):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(first, signal.SIGKILL)
        *pids, statuses = process.stdout.read().splitlines()
    assert statuses == f"0 0 {int(signal.SIGKILL)}" and len({first, *map(int, pids)}) == 3
    assert_whole(path)
    assert_each_byte_once(server)
    assert [entry.start for entry in server.log] == [0, 200_000]


# --- what is seen ------------------------------------------------------------------------------------------------


def test_progress_counts_what_is_left(server, path, capsys):
    server.faults = [Fault(cut=100_000)]
    fetch(server, path, verbose=True)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert re.fullmatch(r"file.torch: \d/1 MB, [\d,]+/s", lines[0])
    assert re.fullmatch(r"file.torch \(from 0 MB on\): 1/1 MB, [\d,]+/s", lines[-1])


def test_notes_are_readable(server, path):
    server.faults = [Fault(cut=100_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, path)
    notes = json.loads(path.with_name("file.torch.part.json").read_text())
    assert notes == {"url": server.url(), "validator": '"v1"', "total": 300_000}
