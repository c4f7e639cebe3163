"""Names on a hub, against a small hub on this machine and against caches laid out by hand."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sdjax
from sdjax.checkpoints.hub import Snapshot, fetched, is_hub_name
from sdjax.checkpoints.tensors import MissingWeightsError

COMMIT = "1" * 40
STEMS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
CLOSED = "http://127.0.0.1:9"


class Hub(http.server.ThreadingHTTPServer):
    """Serves one repository, `org/toy`, from a folder, and notes which files were asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root = root
        self.sent: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match unquote(urlsplit(self.path).path).removeprefix("/").split("/"):
            case ["api", "models", "org", "toy", "revision", "main" | "v1"]:
                self.answer({"id": "org/toy", "sha": COMMIT, "siblings": []})
            case ["api", "models", "org", "toy", "revision", _]:
                self.answer({"error": "Revision Not Found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            case ["api", "models", "org", "toy", "tree", str(commit)] if commit == COMMIT:
                size = {name: (self.server.root / name).stat().st_size for name in self.server.files()}
                self.answer([{"type": "file", "path": name, "size": size[name], "oid": "0"} for name in size])
            case ["org", "toy", "resolve", str(commit), *path] if commit == COMMIT:
                file = self.server.root / "/".join(path)
                if not file.is_file():
                    self.close_connection = True
                    return
                data = file.read_bytes()
                if self.command == "GET":
                    self.server.sent.append("/".join(path))
                self.answer(data, 200, {"ETag": hashlib.sha256(data).hexdigest(), "X-Repo-Commit": COMMIT})
            case ["api", "models", "org", "gated", *_]:
                self.answer({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            case ["api", "models", "org", "broken", *_]:
                self.answer({"error": "out of order"}, 500)
            case _:
                self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(sd1_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    root = shutil.copytree(sd1_folder, tmp_path / "repository")
    for name in ("README.md", "v1.safetensors", "v1.ckpt", "v1.yaml", "safety_checker/model.safetensors"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    for stem in STEMS:
        shutil.copy(root / f"{stem}.safetensors", root / f"{stem}.fp16.safetensors")
        (root / f"{stem.replace('/model', '/pytorch_model')}.bin").write_text(f"pickled {stem}")
    with Hub(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def weights(server: Hub) -> list[str]:
    return sorted(name for name in server.sent if name.endswith((".safetensors", ".bin", ".ckpt")))


def test_a_repository_is_fetched_at_its_commit_and_only_what_is_read_of_it(hub, cache, sd1_folder):
    found = fetched("org/toy", cache=cache, endpoint=hub.endpoint)
    assert found.commit == COMMIT
    wanted = {path.relative_to(sd1_folder).as_posix() for path in sd1_folder.rglob("*") if path.is_file()}
    assert set(hub.sent) == wanted
    assert sdjax.load(found.path).digest == sdjax.load(sd1_folder).digest
    assert fetched("org/toy", cache=cache, endpoint=hub.endpoint) == found
    assert len(hub.sent) == len(wanted), "what is there is not fetched again"


def test_what_was_fetched_is_there_without_a_network(hub, cache):
    found = fetched("org/toy", cache=cache, endpoint=hub.endpoint)
    assert fetched("org/toy", cache=cache, offline=True) == found
    assert fetched("org/toy", cache=cache, endpoint=CLOSED) == found
    assert fetched("org/toy", revision=COMMIT, cache=cache, endpoint=CLOSED) == found
    with pytest.raises(sdjax.CheckpointError, match="not wholly, in the cache"):
        fetched("org/toy", variant="fp16", cache=cache, offline=True)


def test_a_model_and_another_vae_load_by_their_names_and_their_commits_are_known(hub, cache, sd1_folder, monkeypatch):
    fetched("org/toy", cache=cache, endpoint=hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = sdjax.load("org/toy")
    assert (model.revision, model.vae_revision, model.digest) == (COMMIT, None, sdjax.load(sd1_folder).digest)
    both = sdjax.load("org/toy", revision=COMMIT, vae="org/toy", vae_revision=COMMIT, weights=False)
    assert (both.revision, both.vae_revision) == (COMMIT, COMMIT)
    with pytest.raises(ValueError, match="is not on a hub, it has no revisions"):
        sdjax.load(sd1_folder, revision=COMMIT)


def test_a_variant_that_is_not_there_is_told_apart_so_that_another_vae_may_lack_it(hub, cache):
    (hub.root / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(MissingWeightsError):
        fetched("org/toy/vae", variant="fp16", cache=cache, endpoint=hub.endpoint)
    assert fetched("org/toy/vae", cache=cache, endpoint=hub.endpoint).commit == COMMIT


def test_a_variant_is_fetched_alone_and_taken_where_there_is_no_other(hub, cache):
    fetched("org/toy", variant="fp16", cache=cache, endpoint=hub.endpoint)
    assert weights(hub) == [f"{stem}.fp16.safetensors" for stem in STEMS]
    (hub.root / f"{STEMS[1]}.safetensors").unlink()
    hub.sent.clear()
    fetched("org/toy", cache=cache / "another", endpoint=hub.endpoint)
    assert weights(hub) == [
        f"{STEMS[0]}.safetensors",
        f"{STEMS[1]}.fp16.safetensors",
        f"{STEMS[2]}.safetensors",
    ]


def test_pickled_weights_are_fetched_only_when_asked_for_and_nothing_else_is_there(hub, cache):
    for file in (*hub.root.glob("vae/*.safetensors"), *hub.root.glob("text_encoder/*.safetensors")):
        file.unlink()
    lacking = r"org/toy has no safetensors for: text_encoder, vae; .* ask for them: pickled"
    with pytest.raises(sdjax.CheckpointError, match=lacking):
        fetched("org/toy", cache=cache, endpoint=hub.endpoint)
    assert not [name for name in hub.sent if name.endswith(".bin")]
    fetched("org/toy", pickled=True, cache=cache, endpoint=hub.endpoint)
    pickled = [name for name in weights(hub) if name.endswith(".bin")]
    assert pickled == ["text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]


def test_a_single_file_comes_with_the_config_beside_it(hub, cache):
    found = fetched("org/toy/v1.safetensors", revision="v1", cache=cache, endpoint=hub.endpoint)
    assert (found.path.read_text(), found.commit) == ("v1.safetensors", COMMIT)
    assert sorted(hub.sent) == ["v1.safetensors", "v1.yaml"]
    with pytest.raises(sdjax.CheckpointError, match="only fetched if asked for: pickled"):
        fetched("org/toy/v1.ckpt", cache=cache, endpoint=hub.endpoint)
    assert fetched("org/toy/v1.ckpt", pickled=True, cache=cache, endpoint=hub.endpoint).path.read_text() == "v1.ckpt"
    with pytest.raises(sdjax.CheckpointError, match=r"the repository org/toy has no file v2\.safetensors"):
        fetched("org/toy/v2.safetensors", cache=cache, endpoint=hub.endpoint)


def test_a_file_that_breaks_off_is_told(hub, cache):
    fetched("org/toy/vae", cache=cache, endpoint=hub.endpoint)  # from now on the listing is remembered
    (hub.root / "v1.yaml").unlink()
    with pytest.raises(sdjax.CheckpointError, match=r"org/toy/v1\.safetensors could not be fetched from the hub"):
        fetched("org/toy/v1.safetensors", cache=cache, endpoint=hub.endpoint)


def test_a_folder_in_a_repository_may_hold_one_network(hub, cache):
    found = fetched("org/toy/vae", cache=cache, endpoint=hub.endpoint)
    assert found.path.name == "vae"
    assert sorted(hub.sent) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("org/none", {}, "there is no model org/none: .* the hub does not know the repository"),
        ("org/toy", {"revision": "v9"}, r"org/toy \(at revision v9\): .* no such revision; give a branch"),
        ("org/gated", {}, "org/gated: its owner grants access by request: accept the terms"),
        ("org/broken", {}, "there is no model org/broken"),
        ("org/toy", {"endpoint": CLOSED}, "there is no model org/toy: .* the hub can't be asked .*: run once where"),
        ("org/toy", {"offline": True}, "there is no model org/toy: .* the hub can't be asked"),
        ("org/toy/safety_checker", {}, r"neither model_index\.json nor config\.json, .* named with its path"),
        ("org/a--b", {}, "org/a--b could not be fetched from the hub: .*a--b"),
        ("toy", {}, "'toy' is no name on a hub; expected org/name"),
    ],
)  # fmt: skip
def test_what_can_not_be_had_is_told_with_what_to_do(name, options, message, hub, cache):
    with pytest.raises(sdjax.CheckpointError, match=message):
        fetched(name, cache=cache, **{"endpoint": hub.endpoint, **options})


def test_a_cache_that_others_filled_is_used(sd1_folder, cache, tmp_path):
    """Its layout is that of huggingface_hub, which diffusers and transformers fill as well."""
    repository = cache / "models--org--toy"
    shutil.copytree(sd1_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    assert fetched("org/toy", cache=cache, offline=True) == Snapshot(repository / "snapshots" / COMMIT, COMMIT)
    with pytest.raises(sdjax.CheckpointError, match="there is no model org/toy"):
        fetched("org/toy", revision="v1", cache=cache, offline=True)


@pytest.mark.parametrize("name", ["org/toy", "org/toy/vae", "org/toy-1.5_x/a b/c.safetensors"])
def test_names_on_a_hub(name):
    assert is_hub_name(name)


NOT_THERE = (
    "toy",
    "/org/toy",
    "./toy",
    "../org/toy",
    "~/toy",
    "org/",
    "org/toy/../x",
    "org/toy//x",
    r"C:\a\b",
    "org/toy/",
)


@pytest.mark.parametrize("name", NOT_THERE)
def test_names_that_are_none_on_a_hub(name):
    assert not is_hub_name(name)
